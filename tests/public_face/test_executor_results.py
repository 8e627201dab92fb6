"""Results of a ``SandboxExecutor`` are data: what is sent comes back as it was; whatever else a child sends is a clear error."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

import executor_functions as functions
from executor_functions import frame
from pyspawner import (
    ChildFailed,
    ChildTimeoutError,
    RemoteError,
    ResultError,
    SandboxExecutor,
)

LIMIT = 100_000


@pytest.fixture(scope="module")
def executor():
    imports = ["executor_functions", "numpy"]
    with SandboxExecutor(preload_imports=imports, max_result_bytes=LIMIT, timeout=120) as executor:
        yield executor


def outcome(executor: SandboxExecutor, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result, or what it raised. The executor goes on."""
    future = executor.submit(function, *args, **options)
    error = future.exception()
    assert executor.submit(functions.double, 21).result() == 42
    return future.result() if error is None else error


# What can be sent. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**10_000,
        -(2**64),
        0.1,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        "",
        "ä\0\u2028😀\\\"'",
        "half a pair: \ud800, and the other: \udc00",
        [],
        {},
        [[], {}, [None, [True]]],
        {"": {"a": [1, 2.5, "x"]}, "ä": None},
        ["[[[[" * 1000, '"', "\\", '\\"[{'],
        b"",
        b"\0\xff pyspawn",
    ],
)
def test_what_is_sent_comes_back(executor, value):
    result = executor.submit(functions.echo, value).result()
    assert (result, type(result)) == (value, type(value))
    assert repr(result) == repr(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2, [3])), [1, [2, [3]]]),
        (OrderedDict(a=(1,)), {"a": [1]}),
        (bytearray(b"bytes"), b"bytes"),
    ],
)
def test_what_arrives_as_something_else(executor, value, expected):
    assert executor.submit(functions.echo, value).result() == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("memoryview(b'abcd')[::2]", b"ac"),
        ("memoryview(b'abcd').cast('H')", b"abcd"),
        ("signal.SIGKILL", 9),
        ("type('Text', (str,), {})('text')", "text"),
        ("os.times()[:1] and os.stat_result(range(10))", list(range(10))),
        ("__import__('numpy').float64(0.5)", 0.5),
    ],
)
def test_objects_of_subclasses_arrive_as_those_of_the_class(executor, source, expected):
    result = executor.submit(functions.evaluate, source).result()
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{1, 2}", "the result is a set, which is neither bytes nor JSON"),
        ("object()", "the result is a object, which"),
        ("Particular()", "the result is a executor_functions.Particular, which"),
        ("json.JSONEncoder()", "the result is a json.encoder.JSONEncoder, which"),
        ("(i for i in ())", "the result is a generator, which"),
        ("1j", "the result is a complex, which"),
        ("[0, {'a': [1, {2}]}]", "the result[1]['a'][1] is a set, which"),
        ("[b'bytes']", "the result[0] is a bytes, which"),
        ("{1: 2}", "the result has a key that is a int and no str"),
        ("{None: 2}", "the result has a key that is a NoneType and no str"),
        ("{'a': {(1,): 2}}", "the result['a'] has a key that is a tuple and no str"),
        ("float('nan')", "the result is nan, which JSON does not have"),
        ("[float('inf')]", "the result[0] is inf, which JSON does not have"),
        ("{'x': float('-inf')}", "the result['x'] is -inf, which JSON does not have"),
        ("__import__('numpy').int64(1)", "the result is a numpy.int64, which"),
        ("__import__('numpy').zeros(1)", "the result is a numpy.ndarray, which"),
    ],
)
def test_what_json_does_not_have_or_would_change_is_a_type_error_that_says_where(executor, source, said):
    with pytest.raises(RemoteError) as raised:
        executor.submit(functions.evaluate, source).result()
    assert raised.value.type_name == "TypeError"
    assert raised.value.message.startswith(said)


def test_a_hundred_levels_can_be_sent_and_no_more(executor):
    assert json.dumps(executor.submit(functions.return_deep, 100).result()) == "[" * 100 + "]" * 100
    for function, arguments in ((functions.return_deep, [101]), (functions.return_a_circle, [])):
        with pytest.raises(RemoteError, match="is nested more than 100 deep"):
            executor.submit(function, *arguments).result()


def test_numbers_have_4300_digits_at_most(executor):
    assert executor.submit(functions.evaluate, "10**4299").result() == 10**4299
    with pytest.raises(RemoteError, match="ValueError: Exceeds the limit"):
        executor.submit(functions.evaluate, "10**4300").result()


@pytest.mark.parametrize(("kind", "overhead"), [("b'x'", 0), ("'x'", 2)])
def test_a_result_has_max_result_bytes_at_most(executor, kind, overhead):
    most = LIMIT - overhead
    assert len(executor.submit(functions.evaluate, f"{kind} * {most}").result()) == most
    for size in (most + 1, 50_000_000):
        with pytest.raises(
            ResultError, match=f"has {size + overhead} bytes, more than max_result_bytes=100000"
        ):
            executor.submit(functions.evaluate, f"{kind} * {size}").result()


def test_something_behind_the_longest_result_is_seen():
    """Also where that is longer than any exception."""
    with SandboxExecutor(max_result_bytes=5 * LIMIT, max_output=0) as executor:
        assert executor.submit(functions.send, frame(b"B", bytes(5 * LIMIT))).result() == bytes(5 * LIMIT)
        with pytest.raises(ResultError, match="something behind it"):
            executor.submit(functions.send, frame(b"B", bytes(5 * LIMIT)) + b"x").result()


def test_no_result_may_have_any_byte():
    with SandboxExecutor(max_result_bytes=0) as executor:
        assert executor.submit(functions.evaluate, "b''").result() == b""
        with pytest.raises(ResultError, match="has 4 bytes, more than max_result_bytes=0"):
            executor.submit(functions.evaluate, "None").result()
        with pytest.raises(RemoteError, match="no such luck"):
            executor.submit(functions.fail).result()


# What a hostile child sends. ------------------------------------------------------------------------------

HOSTILE = {
    "nothing": b"",
    "half a header": frame(b"J", b"1")[:10],
    "no header": b"x" * 100,
    "a text": b'{"result": 42}',
    "zeros": bytes(1000),
    "another kind": frame(b"P", b"1"),
    "a pickle": pickle.dumps(functions.WhereUnpickled()),
    "a pickle in a frame": frame(b"J", pickle.dumps(functions.WhereUnpickled())),
    "too short": frame(b"J", b"1", 2),
    "too long": frame(b"J", b"1 ", 1),
    "a length of 2**64-1": frame(b"B", b"1", 2**64 - 1),
    "a length of 2**63": frame(b"B", b"1", 2**63),
    "a length above the limit": frame(b"B", b"1", LIMIT + 1),
    "more than its length": frame(b"B", bytes(10 * LIMIT), LIMIT),
    "one byte too many at the limit": frame(b"B", bytes(LIMIT + 1), LIMIT),
    "two results": frame(b"J", b"1") * 2,
    "a result and a newline": frame(b"J", b"1") + b"\n",
    "empty JSON": frame(b"J", b""),
    "no JSON": frame(b"J", b"forty-two"),
    "two values": frame(b"J", b"1 2"),
    "a trailing comma": frame(b"J", b"[1,]"),
    "single quotes": frame(b"J", b"'a'"),
    "an open string": frame(b"J", b'"abc'),
    "a control character": frame(b"J", b'"\n"'),
    "a bad escape": frame(b"J", b'"\\x41"'),
    "UTF-8": frame(b"J", '"ä"'.encode()),
    "UTF-16": frame(b"J", '"a"'.encode("utf-16")),
    "a byte order mark": frame(b"J", b'\xef\xbb\xbf"a"'),
    "NaN": frame(b"J", b"[NaN]"),
    "Infinity": frame(b"J", b"Infinity"),
    "-Infinity": frame(b"J", b"-Infinity"),
    "an infinite exponent": frame(b"J", b"1e999"),
    "a long exponent": frame(b"J", b"1e" + b"9" * 4000),
    "a key twice": frame(b"J", b'{"a":1,"b":2,"a":1}'),
    "a key twice, deep, and escaped": frame(b"J", b'[{"a":{"a":1,"\\u0061":2}}]'),
    "101 levels": frame(b"J", b"[" * 101 + b"]" * 101),
    "101 levels of objects": frame(b"J", b'{"":' * 101 + b"0" + b"}" * 101),
    "open brackets": frame(b"J", b"[" * LIMIT),
    "open brackets behind strings": frame(b"J", b'["\\\\","\\"",' + b"[" * (LIMIT - 20)),
    "a long number": frame(b"J", b"9" * LIMIT),
    "a number of 4301 digits": frame(b"J", b"-1" + b"0" * 4300),
    "a long fraction": frame(b"J", b"0." + b"1" * (LIMIT - 2)),
    "an empty exception": frame(b"E", b""),
    "an exception that is an object": frame(b"E", b'{"type":"ValueError"}'),
    "an exception of two texts": frame(b"E", b'["a","b"]'),
    "an exception with a number": frame(b"E", b'["a","b",3]'),
    "an exception that is a string": frame(b"E", b'"abc"'),
    "an exception with a long name": frame(b"E", json.dumps(["a" * 201, "", ""]).encode()),
    "an exception with a long message": frame(b"E", json.dumps(["", "a" * 5001, ""]).encode()),
    "an exception with a long traceback": frame(b"E", json.dumps(["", "", "a" * 20_001]).encode()),
    "an exception that is longer than any": frame(b"E", json.dumps(["", "", "a" * 400_000]).encode()),
    "a table": frame(b"A", b""),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_whatever_a_child_sends_in_place_of_a_result_is_a_result_error(executor, how):
    error = outcome(executor, functions.send, HOSTILE[how])
    assert type(error) is ResultError
    assert str(error).startswith("the child ended well, but it")
    assert len(str(error)) < 300
    assert error.completed.returncode == 0
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_control_for_those_is_a_forged_result_that_is_one(executor):
    """A child is the source of its result. No frame can change that."""
    assert outcome(executor, functions.send, frame(b"J", b' {"a": [1e2]} ')) == {"a": [100.0]}
    assert outcome(executor, functions.send, frame(b"B", b"x" * LIMIT)) == b"x" * LIMIT
    forged = outcome(executor, functions.send, frame(b"E", b'["SystemExit","",""]'))
    assert type(forged) is RemoteError


@pytest.mark.parametrize(
    "piece", [b"[],", b"{},", b'{"":0},', b'"",', b"[[", b'"', b"\\", b",", b" ", b"9,", b"1.5,"]
)
def test_memory_for_a_result_is_within_a_factor_of_its_length(piece):
    """In a process of its own, whose address space is limited."""
    source = f"""
import resource
from pyspawner import _result_format as format
size = 2_000_000
piece = {piece!r}
data = b"[" + piece * (size // len(piece)) + b"0]"
frame = format._HEADER.pack(b"pyspawn", b"J", len(data)) + data
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 70 * size,) * 2)
try:
    format.decode(frame, max_bytes=len(data), with_tables=False)
except ValueError:
    pass
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", source], check=True, env=environment)


def test_settings_of_the_callers_interpreter_do_not_matter():
    """It has lifted the limits of recursion and of digits."""
    source = """
import sys
from pyspawner import _result_format as format
sys.setrecursionlimit(10**9)
sys.set_int_max_str_digits(0)
for data in (b"[" * 10**7, b'{"":' * 10**6, b"9" * 10**7, b"1." + b"9" * 10**7):
    try:
        format.decode(format._HEADER.pack(b"pyspawn", b"J", len(data)) + data, max_bytes=10**8, with_tables=False)
    except ValueError as error:
        print(error)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", source], check=True, env=environment, capture_output=True, timeout=60
    )
    assert done.stdout.decode().splitlines() == [
        "its result is nested more than 100 deep",
        "its result is nested more than 100 deep",
        "its result has a number of more than 4300 digits",
        "its result has a number of more than 4300 digits",
    ]


# What a hostile child does. -------------------------------------------------------------------------------


def is_ended_badly(result: object) -> bool:
    return type(result) is ChildFailed and result.completed.returncode != 0


DEEDS: dict[str, tuple[Callable[..., Any], list[Any], Callable[[Any], bool]]] = {
    "a forged result before the true one": (
        functions.forge_and_return,
        [],
        lambda result: "something behind it" in str(result),
    ),
    "one at exit": (functions.forge_at_exit, [], lambda result: "something behind it" in str(result)),
    "one of a thread": (functions.forge_in_a_thread, [], lambda result: "something behind it" in str(result)),
    "one of a daemon": (functions.forge_in_a_daemon, [], lambda result: "something behind it" in str(result)),
    "one through /proc": (
        functions.forge_through_proc,
        [],
        lambda result: "something behind it" in str(result),
    ),
    "reading its own result": (
        functions.eat_own_result,
        [],
        lambda result: type(result) is ResultError or result == bytes(100_000),
    ),
    "closing the descriptor": (functions.close_channel, [], is_ended_badly),
    "replacing the descriptor": (functions.replace_channel, [], lambda result: "no result" in str(result)),
    "a descriptor that does not block": (
        functions.nonblocking_channel,
        [],
        lambda result: "max_result_bytes" in str(result),
    ),
    "a fork that returns too": (functions.fork_and_return, [], lambda result: result == "parent"),
    "a fork that returns alone": (
        functions.fork_and_let_the_fork_return,
        [],
        lambda result: "no result" in str(result),
    ),
    "a fork that raises": (functions.fork_and_raise, [], lambda result: result == 0),
    "another json": (
        functions.patch_json,
        [],
        lambda result: type(result) in (ResultError, RemoteError, ChildFailed),
    ),
    "no functions of os": (functions.patch_os, [], is_ended_badly),
    "no streams": (functions.patch_streams, [], lambda result: result == "true"),
    "no more descriptors": (functions.lower_limits, [], lambda result: result == "true"),
    "a thread that kills": (
        functions.end_threads_at_return,
        [],
        lambda result: type(result) is ChildTimeoutError,
    ),
    "an exit code of its own": (
        functions.exit_at_exit,
        [],
        lambda result: is_ended_badly(result) and result.completed.returncode == 3,
    ),
    "a class that raises": (functions.return_a_bad_object, [], lambda result: type(result) is RemoteError),
    "an endless dict": (
        functions.return_an_endless_dict,
        [],
        lambda result: type(result) in (ChildTimeoutError, ChildFailed),
    ),
}
SLOW = {"a thread that kills", "an endless dict"}


@pytest.mark.parametrize("deed", DEEDS)
def test_whatever_a_child_does_the_outcome_is_defined(executor, deed):
    function, arguments, is_expected = DEEDS[deed]
    result = outcome(executor, function, *arguments, timeout=1 if deed in SLOW else 120)
    assert is_expected(result), repr(result)


def test_one_that_never_stops_sending_is_ended_by_its_timeout(executor):
    error = outcome(executor, functions.fill_channel, timeout=0.5)
    assert type(error) is ChildTimeoutError


def test_more_than_the_limit_is_read_and_dropped(executor):
    error = outcome(executor, functions.send_many, frame(b"B", bytes(LIMIT)), 500)
    assert type(error) is ResultError


EXCEPTIONS: dict[str, tuple[Callable[..., Any], list[Any], str, str]] = {
    "raises": (functions.fail_badly, ["raises"], "executor_functions.BadStr", "<its str() failed>"),
    "exits": (functions.fail_badly, ["exits"], "executor_functions.BadStr", "<its str() failed>"),
    "interrupts": (functions.fail_badly, ["interrupts"], "executor_functions.BadStr", "<its str() failed>"),
    "is no string": (
        functions.fail_badly,
        ["is no string"],
        "executor_functions.BadStr",
        "<its str() failed>",
    ),
    "recurses": (functions.fail_badly, ["recurses"], "executor_functions.BadStr", "<its str() failed>"),
    "is long": (functions.fail_badly, ["is long"], "executor_functions.BadStr", "long" * 1250),
    "is odd": (
        functions.fail_badly,
        ["is odd"],
        "executor_functions.BadStr",
        "\\ud800\\x00\\x1b[2J\\u202eä\n",
    ),
    "has no name": (functions.fail_without_a_name, [], "an exception without a name", ""),
    "has a long name": (functions.fail_with_a_long_name, [], "executor_functions." + "N" * 181, "x"),
    "is deep": (functions.fail_deeply, [], "ValueError", "deep"),
    "is in a long chain": (functions.fail_in_a_chain, [], "ValueError", "number 4999"),
    "is in a circle": (functions.fail_in_a_circle, [], "ValueError", "first"),
}


@pytest.mark.parametrize("how", EXCEPTIONS)
def test_an_exception_is_told_whatever_it_is(executor, how):
    function, arguments, type_name, message = EXCEPTIONS[how]
    error = outcome(executor, function, *arguments)
    assert type(error) is RemoteError
    assert (error.type_name, error.message) == (type_name, message)
    assert 0 < len(error.traceback) <= 8 * 20_000
    print(str(error).encode("utf-8"), file=io.StringIO())


def test_an_exception_whose_text_takes_for_ever_is_ended_by_its_timeout(executor):
    assert type(outcome(executor, functions.fail_badly, "loops", timeout=0.5)) is ChildTimeoutError
