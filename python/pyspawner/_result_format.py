"""How the result of a call travels from a child to its caller: one frame of data, and never of code.

The child may send anything. Whatever is not what :func:`encode` makes is a ``ValueError`` in :func:`decode`, and costs time and memory in
proportion to its length.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import struct
import traceback
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

# Of 16 bytes, so that the buffers of a table behind it stay aligned: what it is, one of the kinds, the length of what follows.
_HEADER = struct.Struct("<7scQ")
_MAGIC = b"pyspawn"
JSON, BYTES, TABLE, ERROR = b"J", b"B", b"A", b"E"
HEADER_BYTES = _HEADER.size

# json follows brackets down the C stack, and repr() and pickle follow what has come of them.
_MAX_DEPTH = 100
# int() takes quadratic time. It is Python's own default, which the caller may have lifted.
_MAX_DIGITS = 4300

# Characters of an exception's type, message and traceback.
_MAX_TEXTS = (200, 5_000, 20_000)
# What they come to when each character is written as two escapes.
MAX_ERROR_BYTES = 12 * sum(_MAX_TEXTS) + 100


# The child's half. ----------------------------------------------------------------------------------------

# Made here, because a function may replace what the module has.
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def encode(value: object, *, max_bytes: int, with_tables: bool) -> bytes:
    """Return the frame of a result.

    :raises TypeError: it is, or holds, what cannot be sent.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _frame(BYTES, value, max_bytes)
    if hasattr(type(value), "__arrow_c_stream__"):
        if not with_tables:
            raise TypeError(
                f"the result is a {_type_name(value)}: SandboxExecutor(trust_arrow=True) takes tables"
            )
        return _frame(TABLE, _tables().encode(value), max_bytes)
    unfit = _find_unfit(value, 0)
    if unfit is not None:
        raise TypeError(f"the result{unfit}")
    return _frame(JSON, _ENCODER.encode(value).encode("ascii"), max_bytes)


def encode_error(error: BaseException) -> bytes:
    """Return the frame of an exception, whatever its own methods do, as long as they return."""
    type_name = _attempt(lambda: _type_name(error), "an exception without a name")
    message = _attempt(lambda: str(error), "<its str() failed>")
    lines = _attempt(lambda: "".join(traceback.format_exception(error)), f"{type_name}: {message}\n")
    # What is printed last says most.
    texts = [type_name[: _MAX_TEXTS[0]], message[: _MAX_TEXTS[1]], lines[-_MAX_TEXTS[2] :]]
    return _frame(ERROR, _ENCODER.encode(texts).encode("ascii"), MAX_ERROR_BYTES)


def _frame(kind: bytes, payload: Any, max_bytes: int) -> bytes:  # noqa: ANN401 (it has bytes)
    """Put the header before it. Of what is too long, the caller learns no more than the length."""
    view = memoryview(payload)
    return _HEADER.pack(_MAGIC, kind, view.nbytes) + (view.tobytes() if view.nbytes <= max_bytes else b"")


def _find_unfit(value: Any, depth: int) -> str | None:  # noqa: ANN401 (any that a function may return)
    """Say where in ``value`` there is something that JSON does not have, or would change, and what it is."""
    is_dict = isinstance(value, dict)
    if not is_dict and not isinstance(value, (list, tuple)):
        return _unfit_alone(value)
    if depth == _MAX_DEPTH:
        return f" is nested more than {_MAX_DEPTH} deep"
    container: Any = value  # pyright: ignore[reportUnknownVariableType]
    for label, item in container.items() if is_dict else enumerate(container):
        if is_dict and not isinstance(label, str):
            return f" has a key that is a {_type_name(label)} and no str"
        unfit = _find_unfit(item, depth + 1)
        if unfit is not None:
            return f"[{label!r}]{unfit}"
    return None


def _unfit_alone(value: object) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else f" is {float(value)!r}, which JSON does not have"
    if value is None or isinstance(value, (str, int)):
        return None
    return f" is a {_type_name(value)}, which is neither bytes nor JSON"


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _attempt(work: Callable[[], str], otherwise: str) -> str:
    try:
        return work()
    except BaseException:  # Whatever the exception's class has come up with.
        return otherwise


# The caller's half. ---------------------------------------------------------------------------------------


def decode(sent: bytes, *, max_bytes: int, with_tables: bool) -> object:
    """Return the result that a child has sent; of an exception, its texts as :class:`ErrorTexts`.

    :param sent: the beginning of all that it sent, at least ``HEADER_BYTES`` more than the longest that may be.
    :raises ValueError: it is not one frame, or not of what may be sent. The message says why.
    """
    if not sent:
        raise ValueError("it has sent no result")
    if len(sent) < HEADER_BYTES:
        raise ValueError("its result is malformed: cut in the header")
    magic, kind, length = _HEADER.unpack_from(sent)
    if magic != _MAGIC or kind not in (JSON, BYTES, TABLE, ERROR):
        raise ValueError("its result is malformed: there is no header")
    if kind == ERROR:
        max_bytes = MAX_ERROR_BYTES
    if length > max_bytes:
        raise ValueError(f"its result has {length} bytes, more than max_result_bytes={max_bytes}")
    payload = memoryview(sent)[HEADER_BYTES:]
    if len(payload) != length:
        what = "cut" if len(payload) < length else "there is something behind it"
        raise ValueError(f"its result is malformed: {what}")
    if kind == BYTES:
        return payload.tobytes()
    if kind == TABLE:
        if not with_tables:
            raise ValueError("its result is a table: SandboxExecutor(trust_arrow=True) takes them")
        try:
            return _tables().decode(payload)
        except ValueError as error:
            # It may name a column.
            raise ValueError(f"its table is malformed: {_printable(str(error), 500)}") from None
    value = _decode_json(payload.tobytes())
    return ErrorTexts(value) if kind == ERROR else value


class ErrorTexts:
    """The texts of an exception, within their limits and fit for any terminal."""

    def __init__(self, value: object) -> None:
        match value:
            case [str(type_name), str(message), str(lines)]:
                texts = type_name, message, lines
            case _:
                raise ValueError("its exception is malformed")
        if any(len(text) > most for text, most in zip(texts, _MAX_TEXTS, strict=True)):
            raise ValueError("its exception is malformed: too long")
        self.type_name, self.message, self.traceback = map(_printable, texts, _MAX_TEXTS)


def _printable(text: str, most: int) -> str:
    """Escape what moves a terminal's cursor, and halves of surrogate pairs, which nothing can print."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1]
        for character in text[:most]
    )[:most]


def _decode_json(payload: bytes) -> object:
    """Parse strictly: what two parsers might take for different things is an error."""
    # Outside of strings. Where the two disagree on what a string is, json has stopped at the first mistake.
    bare = _STRING.sub(b"", payload.replace(rb"\\", b"").replace(rb"\"", b""))
    brackets = bare.translate(None, delete=_ALL_BUT_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > _MAX_DEPTH:
        raise ValueError(f"its result is nested more than {_MAX_DEPTH} deep")
    if _LONG_NUMBER.search(bare):
        raise ValueError(f"its result has a number of more than {_MAX_DIGITS} digits")
    try:
        return _DECODER.decode(str(payload, "ascii"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its result is malformed: {error}") from None


_STRING = re.compile(rb'"[^"]*"')
# Each run of digits is looked at once.
_LONG_NUMBER = re.compile(rb"(?<!\d)\d{%d}" % (_MAX_DIGITS + 1))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_ALL_BUT_BRACKETS = bytes(set(range(256)) - _STEPS.keys())


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _to_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_to_dict, parse_float=_to_float, parse_constant=_refuse_constant
)


def _tables() -> Any:  # noqa: ANN401 (a module)
    """Tables need pyarrow, which most results do not."""
    return importlib.import_module("pyspawner._result_tables")
