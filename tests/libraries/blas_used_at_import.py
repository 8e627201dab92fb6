"""To be preloaded: it uses BLAS in the zygote, which has its threads before the first child is made."""

import numpy as np

PRODUCT = np.ones((500, 500)) @ np.ones((500, 500))
