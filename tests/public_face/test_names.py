"""The public names, their shapes and defaults, and the stub of the native module."""

from __future__ import annotations

import ast
import concurrent.futures
import dataclasses
import inspect
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import pyspawner
from pyspawner import _native, _platform, aio


def test_the_public_names_are_these():
    assert sorted(pyspawner.__all__) == [
        "Bind",
        "Cause",
        "ChildFailed",
        "ChildProcess",
        "ChildTimeoutError",
        "Client",
        "Completed",
        "Dev",
        "InsecureSandboxWarning",
        "Limits",
        "LoopbackNetwork",
        "ManagedNetwork",
        "Mount",
        "NetlinkError",
        "NetworkConfig",
        "Overlay",
        "Proc",
        "RemoteError",
        "ResultError",
        "SandboxConfig",
        "SandboxError",
        "SandboxExecutor",
        "SandboxFuture",
        "Tmpfs",
        "Usage",
        "WarmUpError",
        "ZygoteDiedError",
        "ZygoteStartError",
        "__version__",
        "open_beneath",
    ]
    visible = {name for name in vars(pyspawner) if not name.startswith("_")}
    # Modules of their own; the first is there when somebody has imported it.
    assert visible - {"aio", "events"} == {name for name in pyspawner.__all__ if not name.startswith("_")}


def test_the_public_names_for_asyncio_are_these():
    assert sorted(aio.__all__) == ["ChildProcess", "Client"]
    assert {name for name in vars(aio) if not name.startswith("_")} == {*aio.__all__}
    assert {name for name in vars(aio.Client) if not name.startswith("_")} == {
        "close",
        "derive",
        "parked",
        "prewarm",
        "spawn_child",
        "start",
        "zygote_pid",
    }
    assert {
        name for name in {*vars(aio.ChildProcess), *aio.ChildProcess.__annotations__} if name[0] != "_"
    } == {
        "communicate",
        "kill",
        "layers",
        "pid",
        "returncode",
        "send_signal",
        "stderr",
        "stdin",
        "stdout",
        "terminate",
        "wait",
    }


@pytest.mark.parametrize(
    ("of", "name"),
    [
        ("Client", "__init__"),
        ("Client", "spawn_child"),
        ("Client", "prewarm"),
        ("Client", "derive"),
        ("Client", "close"),
        ("ChildProcess", "communicate"),
        ("ChildProcess", "kill"),
        ("ChildProcess", "send_signal"),
        ("ChildProcess", "terminate"),
    ],
)
def test_for_asyncio_the_parameters_are_the_same(of, name):
    for_asyncio, itself = (inspect.signature(getattr(getattr(face, of), name)) for face in (aio, pyspawner))
    assert for_asyncio.parameters == itself.parameters


def test_signatures_are_those_of_1_0():
    def shape(function) -> list[tuple[str, object, object]]:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        return [(p.name, p.kind, None if p.default is p.empty else p.default) for p in parameters]

    by_name, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert shape(pyspawner.Client.__init__) == [
        ("child_main", by_name, None),
        ("environment", by_name, {}),
        ("preload_imports", by_name, []),
        ("executable", by_name, sys.executable),
        # And beside those of 1.0:
        ("zygotes", by_name, 1),
        ("restart", by_name, False),
        ("memory_image", by_name, True),
        ("warm_children", by_name, 0),
        ("warm_up", by_name, None),
        ("max_spawns_per_zygote", by_name, None),
        ("on_event", by_name, None),
    ]
    assert shape(pyspawner.Client.spawn_child) == [
        ("args", either, []),
        ("process_name", by_name, None),
        ("sandbox_config", by_name, None),
    ]
    assert shape(pyspawner.Client.close) == []
    assert shape(pyspawner.ChildProcess.kill) == []
    assert shape(pyspawner.ChildProcess.wait) == [("options", either, 0)]


def test_the_configurations_are_those_of_1_0():
    assert dataclasses.asdict(pyspawner.NetworkConfig()) == {
        "kernel_veth_name": "veth-pyspawn",
        "child_veth_name": "veth-pyspawn-c",
        "kernel_ipv4_address": "192.168.123.1",
        "child_ipv4_address": "192.168.123.2",
    }
    # In this order, which counts for who gives them by position; what is new comes after them.
    assert list(dataclasses.asdict(pyspawner.SandboxConfig()).items())[:3] == [
        ("chroot_dir", None),
        ("network", None),
        ("skip_sandbox_except", frozenset()),
    ]
    config = pyspawner.SandboxConfig(Path("/x"), pyspawner.NetworkConfig("a", "b"), frozenset({"seccomp"}))
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.network = None  # pyright: ignore[reportAttributeAccessIssue]


def test_what_the_configuration_has_beside_that_is_this():
    assert list(dataclasses.asdict(pyspawner.SandboxConfig()).items())[3:] == [
        ("mounts", ()),
        ("working_dir", None),
        ("proc", True),
        ("namespaces", True),
        ("max_landlock_abi", None),
        ("limits", dataclasses.asdict(pyspawner.Limits())),
    ]


MIB = 1024 * 1024
MOUNTS: list[tuple[Any, dict[str, object]]] = [
    (
        pyspawner.Bind("/source", "/target"),
        {"source": "/source", "target": "/target", "writable": False},
    ),
    (
        pyspawner.Tmpfs("/target"),
        {"target": "/target", "size_bytes": 64 * MIB, "max_inodes": 16_384},
    ),
    (
        pyspawner.Overlay(),
        {"target": "/", "size_bytes": 64 * MIB, "lower": None, "upper": None},
    ),
    (pyspawner.Proc(), {"target": "/proc"}),
    (pyspawner.Dev(), {"target": "/dev", "ptmx": False}),
]


@pytest.mark.parametrize(("mount", "fields"), MOUNTS, ids=[type(mount).__name__ for mount, _ in MOUNTS])
def test_the_mounts_have_these_fields_and_defaults(mount, fields):
    assert issubclass(type(mount), pyspawner.Mount)
    assert list(dataclasses.asdict(mount).items()) == list(fields.items())
    assert type(mount)(*fields.values()) == mount, "by position too"
    assert hash(mount) == hash(dataclasses.replace(mount)), "a configuration that holds it can be hashed"
    with pytest.raises(dataclasses.FrozenInstanceError):
        mount.target = "/elsewhere"


def test_a_mount_of_no_kind_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        pyspawner.Mount()  # pyright: ignore[reportAbstractUsage]


def test_the_shape_of_open_beneath():
    parameters = inspect.signature(pyspawner.open_beneath).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("directory", inspect.Parameter.empty),
        ("relative_path", inspect.Parameter.empty),
    ]


def test_the_shape_of_the_executor():
    def shape(function) -> list[tuple[str, object, object]]:
        parameters = list(inspect.signature(function).parameters.values())
        return [(p.name, p.kind, p.default) for p in parameters if p.name != "self"]

    parameter = inspect.Parameter
    assert issubclass(pyspawner.SandboxExecutor, concurrent.futures.Executor)
    assert issubclass(pyspawner.SandboxFuture, concurrent.futures.Future)
    assert shape(pyspawner.SandboxExecutor) == [
        (name, parameter.KEYWORD_ONLY, default)
        for name, default in {
            "sandbox_config": pyspawner.SandboxConfig(),
            "max_workers": None,
            "timeout": None,
            "max_result_bytes": MIB,
            "max_output": MIB,
            "trust_arrow": False,
            "environment": {},
            "preload_imports": [],
            "executable": sys.executable,
            "warm_children": 0,
            "warm_up": None,
        }.items()
    ]
    assert shape(pyspawner.SandboxExecutor.submit) == [
        ("function", parameter.POSITIONAL_ONLY, parameter.empty),
        ("args", parameter.VAR_POSITIONAL, parameter.empty),
        ("timeout", parameter.KEYWORD_ONLY, None),
        ("kwargs", parameter.VAR_KEYWORD, parameter.empty),
    ]
    assert shape(pyspawner.SandboxExecutor.shutdown) == shape(concurrent.futures.Executor.shutdown)


def test_errors_are_os_errors_and_can_be_told_apart():
    assert issubclass(pyspawner.SandboxError, OSError)
    assert issubclass(pyspawner.NetlinkError, pyspawner.SandboxError)
    assert issubclass(pyspawner.ZygoteDiedError, OSError)
    assert not issubclass(pyspawner.ZygoteDiedError, pyspawner.SandboxError)
    assert issubclass(pyspawner.ChildTimeoutError, pyspawner.ChildFailed)
    assert issubclass(pyspawner.ChildTimeoutError, TimeoutError)
    assert issubclass(pyspawner.ChildTimeoutError, concurrent.futures.TimeoutError)
    assert issubclass(pyspawner.InsecureSandboxWarning, UserWarning)


def test_one_version_everywhere():
    assert pyspawner.__version__ == metadata.version("pyspawner") == "2.0.0"


def test_there_is_no_required_dependency():
    assert metadata.requires("pyspawner") in (None, [])


def members(node: ast.ClassDef) -> set[str]:
    return {item.name for item in node.body if isinstance(item, ast.FunctionDef) and item.name != "__new__"}


def test_the_stub_describes_the_native_module():
    stub = ast.parse(Path(pyspawner.__file__).with_name("_native.pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    variables = {
        node.target.id
        for node in stub.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    present = {name for name in vars(_native) if name == "__version__" or not name.startswith("_")}
    functions = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert classes.keys() | variables | functions.keys() == present
    for name, node in functions.items():
        assert [argument.arg for argument in node.args.args] == [
            *inspect.signature(getattr(_native, name)).parameters
        ]
    for name, node in classes.items():
        native = getattr(_native, name)
        assert members(node) == {member for member in vars(native) if not member.startswith("_")}
        for item in node.body:
            assert isinstance(item, (ast.FunctionDef, ast.Expr))
            if isinstance(item, ast.FunctionDef) and not item.decorator_list:
                stubbed = [argument.arg for argument in item.args.args[1:] + item.args.kwonlyargs]
                function = native if item.name == "__new__" else getattr(native, item.name)
                signature = inspect.signature(function)
                assert stubbed == [p for p in signature.parameters if p != "self"], f"{name}.{item.name}"


@pytest.mark.parametrize("module", [pyspawner, aio])
def test_every_public_name_has_a_docstring(module):
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing):
            assert inspect.getdoc(thing), name
            for member, value in vars(thing).items():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    assert inspect.getdoc(value), f"{name}.{member}"
        elif callable(thing):
            assert inspect.getdoc(thing), name


@pytest.mark.parametrize(
    ("platform", "machine", "release", "said"),
    [
        ("darwin", "arm64", "24.0", "this is darwin"),
        ("win32", "AMD64", "11", "this is win32"),
        ("linux", "riscv64", "6.8.0-generic", "this machine is riscv64"),
        ("linux", "x86_64", "5.4.0-42-generic", "this kernel is 5.4.0-42-generic"),
        ("linux", "aarch64", "4.19.0", "this kernel is 4.19.0"),
    ],
)
def test_elsewhere_the_import_says_what_is_needed(monkeypatch, platform, machine, release, said):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", release, "", machine)))
    with pytest.raises(ImportError, match=f"needs Linux 5.10 or later on x86_64 or aarch64.*{said}"):
        _platform.check()


@pytest.mark.parametrize("release", ["5.10.0", "5.15.0-1-cloud-amd64", "6.18.44", "10.0", "strange"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_here_the_import_goes_on(monkeypatch, machine, release):
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", release, "", machine)))
    _platform.check()
