"""What not to preload: it runs a numba loop at import, with a pool whose threads no child has."""

import numba
import numpy as np


@numba.njit(parallel=True)
def total(numbers):
    result = 0.0
    for i in numba.prange(numbers.size):
        result += numbers[i]
    return result


TOTAL = total(np.ones(10_000))


def main() -> None:
    pass
