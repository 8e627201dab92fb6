"""Has given numpy's global functions another bit generator, and drawn from it in the zygote."""

import numpy as np

np.random.set_bit_generator(np.random.PCG64())  # pyright: ignore[reportAttributeAccessIssue]
SAMPLE = np.random.random()
