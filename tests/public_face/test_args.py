"""``args`` are pickled by the caller and unpickled in the child, inside the sandbox."""

from __future__ import annotations

import threading

import pytest

import pyspawner
from support import children_of_this_process, communicate, run

SANDBOX = pyspawner.SandboxConfig()


class WhereUnpickled:
    """Says in which process it was unpickled, and with which uid and filter."""

    def __reduce__(self):
        report = "__import__('os').getpid(), __import__('os').getuid(), open('/proc/self/status').read().count('Seccomp:\\t2')"
        return eval, (report,)


def test_they_are_unpickled_inside_the_sandbox(client):
    assert run(client, "print(place)", place=WhereUnpickled()).text == "(1, 1000, 1)\n"


def test_any_picklable_object_arrives_equal(client):
    thing = {
        "text": "ä\0",
        "bytes": bytes(range(256)),
        "nested": [(1, 2.5, None), frozenset({3})],
        "type": dict,
    }
    assert run(client, "print(repr(thing) == expected)", thing=thing, expected=repr(thing)).text == "True\n"


def test_a_hundred_megabytes_arrive(client):
    source = "import hashlib; print(len(data), hashlib.sha256(data).hexdigest())"
    data = bytes(range(256)) * (100 * 1024 * 1024 // 256)
    import hashlib

    assert run(client, source, data=data).text == f"{len(data)} {hashlib.sha256(data).hexdigest()}\n"


@pytest.mark.parametrize("thing", [threading.Lock(), lambda: None, (i for i in "generator")])
def test_what_cannot_be_pickled_raises_before_anything_is_sent(client, thing):
    before = children_of_this_process()
    with pytest.raises((TypeError, AttributeError, Exception), match=r"pickle|lambda") as caught:
        client.spawn_child(["source", thing], sandbox_config=SANDBOX)
    assert not isinstance(caught.value, OSError)
    assert children_of_this_process() == before
    assert run(client, "print('next')").text == "next\n"


def test_what_cannot_be_unpickled_is_the_childs_error(client):
    outcome = communicate(client.spawn_child(["", Unpicklable()], sandbox_config=SANDBOX))
    assert outcome.exitcode == 1
    assert outcome.stderr.endswith(b"ZeroDivisionError: division by zero\n")


class Unpicklable:
    """Pickles well, and raises when it is unpickled."""

    def __reduce__(self):
        return eval, ("1 / 0",)


def test_no_args_is_the_default():
    with pyspawner.Client(child_main="builtins.print") as client:
        assert communicate(client.spawn_child(sandbox_config=SANDBOX)).stdout == b"\n"


@pytest.mark.parametrize("args", ["text", b"bytes"])
def test_a_string_in_place_of_a_list_is_bad_input(client, args):
    with pytest.raises(TypeError, match="list of arguments"):
        client.spawn_child(args, sandbox_config=SANDBOX)


def test_too_few_args_are_the_childs_error(client):
    outcome = communicate(client.spawn_child([], sandbox_config=SANDBOX))
    assert outcome.exitcode == 1
    assert b"TypeError: run_source() missing 2 required positional arguments" in outcome.stderr


def test_the_sandbox_must_be_said(client):
    with pytest.raises(TypeError, match="sandbox_config"):
        client.spawn_child([])
    with pytest.raises(TypeError, match="SandboxConfig"):
        client.spawn_child([], sandbox_config=None)
