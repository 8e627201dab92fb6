"""Has used every source of random numbers in the zygote: whatever state they keep exists by then."""

import multiprocessing.process
import random
import ssl
import tempfile
import uuid

import numpy as np
import pandas as pd

SAMPLES = [
    random.random(),
    np.random.random(),
    np.random.standard_normal(),  # They come in pairs: numpy keeps the other one.
    uuid.uuid1(),
    uuid.uuid4(),
    ssl.RAND_bytes(8),
    tempfile.mktemp(),
    multiprocessing.process.current_process().authkey,
    pd.Series(range(1000)).sample(),
]

# Generators of the module's own. Nobody but the module knows of them, so they go on in every child where they
# were here.
GENERATOR = random.Random()
NUMPY_GENERATOR = np.random.default_rng()
