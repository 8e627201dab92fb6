"""Tables as results: Arrow's IPC stream, of plain columns only.

Arrow's reader is memory-unsafe code that is made for untrusted streams, on two conditions: errors are heeded, and what it returns is
validated in full before use. Its authors count crashes and hangs as bugs and not as vulnerabilities. So the caller has to allow it; and
what makes a short stream expensive is refused before it is read: compression, columns that share bytes, rows that have none.
"""

from __future__ import annotations

import importlib
import struct
from typing import Any

pyarrow: Any = importlib.import_module("pyarrow")
types: Any = importlib.import_module("pyarrow.types")

# A column of booleans has 8 rows a byte, twice if it is in a struct. The rest is for columns of nothing but nulls.
_ROWS_PER_BYTE, _FREE_ROWS = 16, 1 << 20

# Fields of Message and RecordBatch; see Message.fbs of Arrow's format.
_HEADER, _CUSTOM_METADATA = 2, 4
_NODES, _BUFFERS, _COMPRESSION = 1, 2, 3

# Views may all show the same bytes, dictionaries may be shared, an extension type runs code of its own, a run may be any length.
_PLAIN = (
    types.is_null,
    types.is_boolean,
    types.is_integer,
    types.is_floating,
    types.is_decimal,
    types.is_temporal,
    types.is_string,
    types.is_large_string,
    types.is_binary,
    types.is_large_binary,
    types.is_fixed_size_binary,
)
_NESTED = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_struct, types.is_map)


def encode(value: object) -> bytes:
    """Return the stream of what has ``__arrow_c_stream__``.

    :raises TypeError: a column is of a type that is not sent.
    """
    table = pyarrow.table(value)
    for index, field in enumerate(table.schema):
        plain = _plain_type(field.type)
        if plain != field.type:
            table = table.set_column(index, field.name, table.column(index).cast(plain))
        unfit = _find_unfit(field.with_type(plain))
        if unfit is not None:
            raise TypeError(f"column {field.name!r} of the result has the type {unfit}, which is not sent")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _plain_type(column: Any) -> Any:  # noqa: ANN401 (pyarrow has no types)
    """Return what a column becomes to be sent: of a categorical, its values."""
    if types.is_dictionary(column):
        return _plain_type(column.value_type)
    if types.is_string_view(column):
        return pyarrow.large_string()
    return pyarrow.large_binary() if types.is_binary_view(column) else column


def _find_unfit(field: Any) -> str | None:  # noqa: ANN401 (pyarrow has no types)
    """Return the type of the column, or of a part of it, that is not sent.

    :raises UnicodeDecodeError: its name is no text. pyarrow finds that only when it is asked for it.
    """
    column, _ = field.type, field.name
    if any(is_kind(column) for is_kind in _PLAIN):
        return None
    if not any(is_kind(column) for is_kind in _NESTED):
        return str(column)
    parts = (column.field(index) for index in range(column.num_fields))
    return next((unfit for part in parts if (unfit := _find_unfit(part)) is not None), None)


def decode(payload: memoryview) -> Any:  # noqa: ANN401 (a pyarrow.Table)
    """Return the table of a stream that a child has sent.

    :raises ValueError: it is none, or none that :func:`encode` makes.
    """
    stream = pyarrow.py_buffer(payload)
    try:
        _check_messages(stream)
        # Another machine's order of bytes would be turned round before it is validated.
        options = pyarrow.ipc.IpcReadOptions(ensure_native_endian=False)
        with pyarrow.ipc.open_stream(stream, options=options) as reader:
            for field in reader.schema:
                unfit = _find_unfit(field)
                if unfit is not None:
                    raise ValueError(f"a column has the type {unfit}")
            table = reader.read_all()
        # Without columns, it has whatever number it says.
        _check_rows(table.num_rows, stream)
        table.validate(full=True)
    except (pyarrow.ArrowException, ValueError, OSError, struct.error) as error:
        raise ValueError(str(error)) from None
    # It says how to make a pandas.DataFrame of it: which types, from which modules.
    return table.replace_schema_metadata(None)


def _check_messages(stream: Any) -> None:  # noqa: ANN401 (pyarrow has no types)
    """Refuse what would cost more than its length, and what is not read by pyarrow alone."""
    rows = 0
    for index, message in enumerate(pyarrow.ipc.MessageReader.open_stream(stream)):
        if message.type != ("record batch" if index else "schema"):
            raise ValueError(f"message {index} is a {message.type}")
        metadata = message.metadata.to_pybytes()
        if not index:
            # Flatbuffers keep their strings as they are.
            if b"ARROW:extension" in metadata:
                raise ValueError("a column has an extension type")
            continue
        root = _FlatTable(metadata, struct.unpack_from("<I", metadata)[0])
        # Compression was first said in there.
        if root.has(_CUSTOM_METADATA):
            raise ValueError("a message has metadata of its own")
        batch = root.table(_HEADER)
        if batch.has(_COMPRESSION):
            raise ValueError("it is compressed")
        if sum(batch.pairs(_BUFFERS)[1::2]) > message.body.size:
            raise ValueError("columns share bytes")
        rows += sum(batch.pairs(_NODES)[0::2])
    _check_rows(rows, stream)


def _check_rows(rows: int, stream: Any) -> None:  # noqa: ANN401 (pyarrow has no types)
    if rows > _ROWS_PER_BYTE * stream.size + _FREE_ROWS:
        raise ValueError("it has more rows than bytes")


class _FlatTable:
    """A table in a flatbuffer: a place, and elsewhere an index of where its fields are from there. See the internals of FlatBuffers."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place
        self._index = place - self._read("i", place)
        self._index_size = self._read("H", self._index)

    def has(self, field: int) -> bool:
        return self._find(field) != 0

    def table(self, field: int) -> _FlatTable:
        return _FlatTable(self._data, self._follow(field))

    def pairs(self, field: int) -> tuple[int, ...]:
        """Return a vector of pairs of numbers, one behind the other."""
        start = self._follow(field)
        numbers = struct.unpack_from(f"<{2 * self._read('I', start)}q", self._data, start + 4)
        if min(numbers, default=0) < 0:
            raise ValueError("a length is negative")
        return numbers

    def _find(self, field: int) -> int:
        entry = 4 + 2 * field
        return self._read("H", self._index + entry) if entry < self._index_size else 0

    def _follow(self, field: int) -> int:
        offset = self._find(field)
        if not offset:
            raise ValueError("a part is missing")
        place = self._place + offset
        return place + self._read("I", place)

    def _read(self, form: str, place: int) -> int:
        # struct would count from the end.
        if place < 0:
            raise ValueError("an offset leads out of it")
        return struct.unpack_from(f"<{form}", self._data, place)[0]
