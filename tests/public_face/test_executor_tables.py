"""Tables as results of a ``SandboxExecutor``: only where the caller wants them, and only what an honest child sends."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from typing import Any, ClassVar

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import executor_functions as functions
from executor_functions import frame
from pyspawner import RemoteError, ResultError, SandboxExecutor

IMPORTS = ["executor_functions", "pyarrow", "pandas"]


@pytest.fixture(scope="module")
def executor():
    with SandboxExecutor(preload_imports=IMPORTS, max_result_bytes=1_000_000, trust_arrow=True) as executor:
        yield executor


TABLES: dict[str, Any] = {
    "plain": pa.table({"a": [1, None], "b": ["x", None], "c": [True, None], "d": [b"x", None]}),
    "nested": pa.table({"l": [[1], None], "s": [{"x": "y"}, None], "ll": [[["z"]], []]}),
    "nulls": pa.table({"n": [None] * 100_000}),
    "booleans": pa.table({"b": [True] * 1_000_000}),
    "no rows": pa.table({"a": pa.array([], "int64")}),
    "no columns": pa.table({}),
    "several batches": pa.concat_tables([pa.table({"a": [n]}) for n in range(3)]),
    "a slice": pa.table({"a": ["x", "y", "z"]}).slice(1, 1),
    "a batch": pa.record_batch({"a": [1, 2]}),
    "of pandas": pd.DataFrame({"a": [1, 2], "t": pd.to_datetime(["2020-01-01", "2021-01-01"])}),
    "of polars": pl.DataFrame({"a": ["x", "y"], "l": [[1], [2]]}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_come_back_as_tables(executor, kind):
    result = executor.submit(functions.echo, TABLES[kind]).result()
    assert type(result) is pa.Table
    expected = pa.table(TABLES[kind])
    assert result.to_pylist() == expected.to_pylist()
    assert result.column_names == expected.column_names


def test_what_is_not_sent_as_it_is(executor):
    """Categories come as their values, an index as a column, pandas' notes not at all."""
    frame_ = pd.DataFrame({"c": pd.Categorical(["u", "v", "u"])}, index=[5, 6, 7])
    result = executor.submit(functions.echo, frame_).result()
    assert result.to_pydict() == {"c": ["u", "v", "u"], "__index_level_0__": [5, 6, 7]}
    assert result.schema.metadata is None


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"x": pd.period_range("2020", periods=2, freq="D")}),
        pa.table({"x": pa.array([["x"]], pa.list_(pa.string_view()))}),
    ],
)
def test_a_column_of_another_type_is_a_type_error(executor, table):
    with pytest.raises(RemoteError, match="TypeError: column 'x' of the result has the type"):
        executor.submit(functions.echo, table).result()


def test_tables_must_be_wanted():
    with SandboxExecutor(preload_imports=IMPORTS) as executor:
        for kind in ("plain", "of pandas"):
            with pytest.raises(RemoteError, match=r"TypeError: .*trust_arrow=True"):
                executor.submit(functions.echo, TABLES[kind]).result()
        with pytest.raises(ResultError, match="trust_arrow=True"):
            executor.submit(functions.send, frame(b"A", stream(TABLES["plain"]))).result()


def stream(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def with_metadata_of_its_own() -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"a": [1]})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    return sink.getvalue().to_pybytes()


def patched(table: Any, old: bytes, new: bytes) -> bytes:
    data = stream(table)
    assert data.count(old) == 1, data.count(old)
    return data.replace(old, new)


TWO = pa.table({"a": pa.array([1, 2], "int64"), "b": pa.array([3, 4], "int64")})
TEXTS = pa.table({"a": ["abc", "defg"]})
SCHEMA = pa.ipc.read_message(stream(TWO)).serialize().to_pybytes()
NOTHING_BUT_ROWS = pa.RecordBatch.from_struct_array(pa.array([{}] * 0x123456, pa.struct([])))
BAD_TABLES = {
    "nothing": (b"", "schema"),
    "no stream": (b"x" * 1000, "metadata bytes"),
    "a cut one": (stream(TABLES["plain"])[:-100], "body"),
    "a second schema": (SCHEMA * 2, "message 1 is a schema"),
    "a batch and no schema": (stream(TWO)[len(SCHEMA) :], "message 0 is a record batch"),
    "compression": (stream(TABLES["plain"], compression="zstd"), "compressed"),
    "another compression": (stream(TABLES["plain"], compression="lz4"), "compressed"),
    "metadata of a message": (with_metadata_of_its_own(), "metadata of its own"),
    "a dictionary": (
        stream(pa.table({"a": pa.array(["x"]).dictionary_encode()})),
        "message 1 is a dictionary",
    ),
    "views": (stream(pa.table({"a": pa.array(["x"], pa.string_view())})), "string_view"),
    "views of lists": (stream(pa.table({"a": pa.array([[1]], pa.list_view(pa.int8()))})), "list_view"),
    "runs": (
        stream(pa.table({"a": pa.RunEndEncodedArray.from_arrays(pa.array([1000], "int32"), pa.array([1]))})),
        "run_end_encoded",
    ),
    "a union": (
        stream(pa.table({"a": pa.UnionArray.from_sparse(pa.array([0], "int8"), [pa.array([1])])})),
        "union",
    ),
    "an extension type": (stream(pa.table({"a": pa.array([b"0" * 16], pa.uuid())})), "extension type"),
    "more rows than bytes": (stream(pa.table({"a": pa.nulls(10_000_000)})), "more rows"),
    "rows and no column": (
        patched(pa.table(NOTHING_BUT_ROWS), struct.pack("<q", 0x123456), struct.pack("<q", 2**60)),
        "more rows",
    ),
    "columns that share bytes": (
        patched(TWO, struct.pack("<4q", 16, 0, 16, 16), struct.pack("<4q", 16, 0, 0, 32)),
        "share bytes",
    ),
    "a negative length": (
        patched(TWO, struct.pack("<4q", 16, 0, 16, 16), struct.pack("<4q", 16, 0, 16, -16)),
        "negative",
    ),
    "offsets that lead out of it": (
        patched(TEXTS, struct.pack("<3i", 0, 3, 7), struct.pack("<3i", 0, 3, 2**31 - 1)),
        "offset",
    ),
    "offsets that go back": (
        patched(TEXTS, struct.pack("<3i", 0, 3, 7), struct.pack("<3i", 0, 7, 3)),
        "offset",
    ),
    "text that is no UTF-8": (patched(TEXTS, b"abcdefg", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9"), "UTF8"),
    "a name inside that is no UTF-8": (
        patched(pa.table({"a": [[{"name": 1}]]}), b"name", b"\xff\xfe\xfd\xfc"),
        "codec",
    ),
    "a name that is no UTF-8": (patched(pa.table({"name": [1]}), b"name", b"\xff\xfe\xfd\xfc"), "codec"),
}


@pytest.mark.parametrize("how", BAD_TABLES)
def test_a_table_that_no_honest_child_sends_is_a_result_error(executor, how):
    sent, said = BAD_TABLES[how]
    error = executor.submit(functions.send, frame(b"A", sent)).exception()
    assert type(error) is ResultError
    assert str(error).startswith("the child ended well, but its table is malformed: ")
    assert said in str(error)
    assert len(str(error)) < 600


class Loud(pa.ExtensionType):
    """Says when it is made from what somebody has sent."""

    made: ClassVar[list[bytes]] = []

    def __init__(self) -> None:
        super().__init__(pa.int64(), "loud")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"sent"

    @classmethod
    def __arrow_ext_deserialize__(cls, _: object, sent: bytes) -> Loud:
        cls.made.append(sent)
        return cls()


def test_an_extension_types_own_code_does_not_run(executor):
    sent = stream(pa.table({"a": pa.ExtensionArray.from_storage(Loud(), pa.array([1]))}))
    pa.register_extension_type(Loud())
    try:
        with pytest.raises(ResultError, match="extension type"):
            executor.submit(functions.send, frame(b"A", sent)).result()
        assert Loud.made == []
        pa.ipc.open_stream(sent).read_all()
        assert Loud.made == [b"sent"], "the control"
    finally:
        pa.unregister_extension_type("loud")


def test_the_control_for_those_is_a_table_that_is_one(executor):
    for table in (TWO, TEXTS, TABLES["plain"]):
        assert executor.submit(functions.send, frame(b"A", stream(table))).result().equals(table)


def test_a_table_has_max_result_bytes_at_most(executor):
    with pytest.raises(ResultError, match="more than max_result_bytes=1000000"):
        executor.submit(functions.echo, pa.table({"a": range(200_000)})).result()


def test_damaged_tables_are_errors_or_tables_and_no_crash():
    """In a process of its own. What passes can be looked at in full."""
    source = """
import random, sys
import pyarrow as pa
from pyspawner import _result_tables as tables
numbers = random.Random(20)
table = pa.table({"a": [1, None], "b": ["x", None], "c": [["y"], None], "d": [{"e": True}, None], "f": [b"z", b""]})
honest = tables.encode(table)
counts = [0, 0]
for _ in range(3000):
    data = bytearray(honest)
    for _ in range(numbers.choice([1, 2, 5])):
        start = numbers.randrange(len(data))
        new = numbers.choice([bytes(4), b"\\xff" * 4, b"\\x08\\0\\0\\0", numbers.randbytes(1)])
        data[start : start + len(new)] = new
    try:
        found = tables.decode(memoryview(bytes(data)))
    except ValueError:
        counts[0] += 1
    else:
        counts[1] += 1
        found.to_pylist(), found.to_string(), found.combine_chunks()
print(min(counts) > 10)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"True\n"), done.stderr


def test_without_pyarrow_tables_cannot_be_wanted(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pyarrow"):
        SandboxExecutor(trust_arrow=True)
    with SandboxExecutor() as executor:
        assert executor.submit(functions.double, 1).result() == 2
