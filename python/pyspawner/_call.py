"""A call of a function that a child is to make."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Call:
    """What a child is to do."""

    function: str
    """Its full name."""

    pickled: bytes
    """Its arguments."""

    timeout: float | None
    """In seconds."""


def take_apart(
    function: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the function's name, and all its arguments.

    :raises TypeError: it is neither a function nor a name.
    :raises ValueError: a child could not import it.
    """
    if isinstance(function, functools.partial):
        return _find_name(function.func), (*function.args, *args), {**function.keywords, **kwargs}
    return _find_name(function), args, kwargs


def _find_name(function: Callable[..., Any] | str) -> str:
    """Return the name by which a child imports it."""
    if isinstance(function, str):
        parts = function.split(".")
        if len(parts) == 1 or not all(part.isidentifier() for part in parts):
            raise ValueError(f'a function\'s name is "package.module.function", not {function!r}')
        module, name = ".".join(parts[:-1]), parts[-1]
    else:
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
        if not callable(function) or not isinstance(module, str) or not isinstance(name, str):
            raise TypeError(f"not a function, nor the name of one: {function!r}")
    if module == "__main__":
        raise ValueError(
            f"a child cannot import {name!r} of __main__: its __main__ is another one. "
            "Put the function into a module, or pass its name with that of the file"
        )
    if not isinstance(function, str) and getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(
            f"a child cannot import {function!r}: there is no such function at the top of {module!r}"
        )
    return f"{module}.{name}"
