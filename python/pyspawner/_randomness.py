"""Random state that differs between siblings.

``random`` reseeds itself after a fork; ``uuid``, ``secrets`` and ``ssl`` ask the kernel, or notice the new process. numpy's global
generator does neither.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def plan_reseeding() -> list[Callable[[], object]]:
    """Answer what a child must call to differ from its siblings. For the zygote, once its imports are done."""
    uuid: Any = sys.modules.get("uuid")
    if uuid is not None:
        # libuuid keeps the clock sequence that it has once drawn; Python's own way draws one each time.
        uuid._generate_time_safe = None
    calls: list[Callable[[], object]] = []
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        calls.append(_plan_numpy(numpy_random))
    multiprocessing: Any = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None:
        # Who has it may have others of its kind unpickle things.
        calls.append(lambda: setattr(multiprocessing.current_process(), "authkey", os.urandom(32)))
    polars: Any = sys.modules.get("polars")
    if polars is not None:
        calls.append(lambda: polars.set_random_seed(int.from_bytes(os.urandom(8), "little")))
    return calls


def _plan_numpy(numpy_random: Any) -> Callable[[], object]:  # noqa: ANN401 (a module that may not be installed)
    """Reseed numpy's global generator.

    ``numpy.random.seed()`` touches, and so copies, more than a hundred pages in a fresh clone. Where the words of the generator's state
    can be found in memory, a child only fills them.
    """
    generator = numpy_random.mtrand._rand._bit_generator
    if not isinstance(generator, numpy_random.MT19937):
        # A module has put another one in its place, which cannot be reseeded but replaced by its like.
        return lambda: numpy_random.set_bit_generator(type(generator)())
    # No word and no normal deviate is left over from before.
    numpy_random.seed()
    words = _words_in_memory(generator, numpy_random.get_state(legacy=True))
    if words is None:
        return numpy_random.seed

    def fill() -> None:
        words[:] = os.urandom(len(words))

    return fill


def _words_in_memory(generator: Any, state: Any) -> memoryview | None:  # noqa: ANN401
    """Find the Mersenne Twister's words, and make sure that they are what numpy says they are."""
    import ctypes  # noqa: PLC0415 (only where numpy is)

    _, words, _, has_gauss, _ = state
    address = generator.ctypes.state_address
    memory = memoryview((ctypes.c_char * words.nbytes).from_address(address)).cast("B")
    return memory if memory == words.tobytes() and not has_gauss else None
