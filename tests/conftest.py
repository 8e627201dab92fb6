"""Fixtures for every test: a client, and the proof that nothing is left behind."""

from __future__ import annotations

import gc
import signal
import textwrap
import time

import pytest

import internet
import ordinary_user
import pyspawner
import warm_client
from support import children_of_this_process, open_descriptors, visible_directory


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forbid-skips", action="store_true", help="a test that skips itself fails the run")
    parser.addoption(
        "--warm", action="store_true", help="children of the fixtures' clients were parked before they run"
    )
    parser.addoption("--without-image", action="store_true", help="their zygotes have no memory image")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--warm"):
        cold = [item for item in items if item.get_closest_marker("cold")]
        config.hook.pytest_deselected(items=cold)
        items[:] = [item for item in items if item not in cold]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--warm"):
        terminalreporter.write_line(
            f"{warm_client.Client.warm_spawns} of {warm_client.Client.spawns} children were warm"
        )


def pytest_sessionstart() -> None:
    # A shell that runs the tests in the background lets them ignore Ctrl-C, which some of them send.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    skipped = reporter.stats.get("skipped", [])
    if session.config.getoption("--forbid-skips") and skipped and exitstatus == pytest.ExitCode.OK:
        for report in skipped:
            reporter.write_line(f"REQUIRED, BUT SKIPPED: {report.nodeid}: {report.longrepr}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def client_type(pytestconfig: pytest.Config) -> type[pyspawner.Client]:
    return warm_client.Client if pytestconfig.getoption("--warm") else pyspawner.Client


@pytest.fixture(scope="session")
def has_image(pytestconfig: pytest.Config) -> bool:
    return not pytestconfig.getoption("--without-image")


@pytest.fixture(scope="session")
def client(client_type, has_image):
    """A client without preloaded modules whose children run source code; see ``support.run``."""
    with client_type(child_main="support.run_source", memory_image=has_image) as client:
        yield client


@pytest.fixture(scope="module")
def preloaded(client_type, has_image):
    """A client whose children have what they need in memory: in their root there is no Python."""
    imports = [
        "attacks",
        "encodings.idna",
        "mmap",
        "pty",
        "resource",
        "shutil",
        "socket",
        "subprocess",
        "termios",
        "threading",
        "traceback",
    ]
    with client_type(
        child_main="support.run_source", preload_imports=imports, memory_image=has_image
    ) as client:
        yield client


@pytest.fixture
def make_module(tmp_path, monkeypatch):
    """Write a module that zygotes find which are started from now on."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return make


@pytest.fixture(scope="module")
def user():
    """A user of the host without rights; see ``ordinary_user``."""
    with ordinary_user.ordinary_user() as user:
        yield user


@pytest.fixture(scope="module")
def world():
    """A host, an Internet and a LAN; see ``internet``."""
    with internet.world() as world:
        yield world


@pytest.fixture
def directory():
    """A directory that children see."""
    with visible_directory() as directory:
        yield directory


@pytest.fixture(autouse=True)
def nothing_is_left_behind(client):
    """After every test: no process, no zombie, no descriptor more than before it."""
    del client  # Made before we count.
    gc.collect()
    processes, descriptors = children_of_this_process(), open_descriptors()
    yield
    deadline = time.monotonic() + 5
    while True:
        # What a finalizer has touched takes a second time.
        gc.collect()
        new_processes = children_of_this_process() - processes
        new_descriptors = {n: t for n, t in open_descriptors().items() if n not in descriptors}
        if not new_processes and not new_descriptors:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: processes {new_processes}, descriptors {new_descriptors}")
        time.sleep(0.01)
