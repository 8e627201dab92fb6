"""What not to preload: it uses an OpenMP pool at import, whose threads no child has."""

import numpy as np
from sklearn.cluster import KMeans

LABELS = KMeans(2).fit_predict(np.arange(2000.0).reshape(-1, 1))


def main() -> None:
    pass
