"""``environment`` is the child's whole environment, and the zygote's."""

from __future__ import annotations

import json

import pytest

import pyspawner
from support import run

ENVIRONMENTS = [
    {},
    {"LC_ALL": "C.UTF-8"},
    {"LANG": "C", "EMPTY": "", "UMLAUT": "ä", "EQUALS": "a=b", "NEWLINE": "a\nb"},
    {"LC_CTYPE": "C"},
    {"PATH": "/usr/bin", "HOME": "/nowhere", "PYTHONHASHSEED": "0"},
]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_child_has_exactly_this_environment(environment):
    source = """
        import ctypes, json, os
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        initial = open("/proc/self/environ", "rb").read().split(b"\\0")[:-1]
        in_c = [str(getenv(b"LC_CTYPE")), str(getenv(b"PYTHONUNBUFFERED"))]
        print(json.dumps([dict(os.environ), sorted(os.fsdecode(entry) for entry in initial), in_c]))
        """
    with pyspawner.Client(child_main="support.run_source", environment=environment) as client:
        seen, initial, in_c = json.loads(run(client, source).text)
    assert seen == environment
    assert initial == sorted(f"{name}={value}" for name, value in environment.items())
    assert in_c == ["b'C'" if "LC_CTYPE" in environment else "None", "None"]


def test_nothing_of_the_callers_environment_is_inherited(monkeypatch):
    monkeypatch.setenv("CALLERS_SECRET", "s3cret")
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    with pyspawner.Client(child_main="support.run_source") as client:
        assert run(client, "import os; print(dict(os.environ))").text == "{}\n"


def test_text_is_utf_8_even_in_an_empty_environment(client):
    assert run(client, "import sys; print(sys.stdout.encoding, 'ä')").text == "utf-8 ä\n"


def test_a_module_cannot_leave_a_variable_for_children_unseen(tmp_path, monkeypatch):
    """What a preloaded module sets is the user's own doing, and visible: it is not filtered."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "setter.py").write_text("import os; os.environ['SET_BY_MODULE'] = '1'")
    with pyspawner.Client(child_main="support.run_source", preload_imports=["setter"]) as client:
        assert run(client, "import os; print(dict(os.environ))").text == "{'SET_BY_MODULE': '1'}\n"


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({"": "x"}, ValueError),
        ({"A=B": "x"}, ValueError),
        ({"A": "x\0y"}, ValueError),
        ({"A\0": "x"}, ValueError),
        ({"A": 1}, TypeError),
        ({b"A": "x"}, TypeError),
    ],
)
def test_an_entry_that_no_environment_can_have_is_bad_input(environment, error):
    with pytest.raises(error, match="environment"):
        pyspawner.Client(child_main="support.run_source", environment=environment)
