"""Work for the threads of libraries, before a child parks and after."""

from __future__ import annotations


def numpy_random_state() -> str:
    import numpy as np

    (np.ones((300, 300)) @ np.ones((300, 300))).sum()
    return str([float(np.random.random()), float(np.random.default_rng().random())])


def kmeans() -> str:
    import numpy as np
    from sklearn.cluster import KMeans

    points = np.arange(4000.0).reshape(2000, 2)
    return str(sorted(KMeans(n_clusters=3, n_init="auto", random_state=0).fit(points).cluster_centers_[:, 0]))


def numba_parallel() -> str:
    import numba
    import numpy as np

    @numba.njit(parallel=True)
    def total(numbers):
        result = 0.0
        for index in numba.prange(len(numbers)):
            result += numbers[index]
        return result

    return str(total(np.ones(100_000)))


def polars_query() -> str:
    import polars as pl

    frame = pl.DataFrame({"key": [1, 2, 3] * 1000, "value": range(3000)})
    return str(frame.lazy().group_by("key").agg(pl.col("value").sum()).sort("key").collect().rows())


def pandas_groupby() -> str:
    import pandas as pd

    frame = pd.DataFrame({"key": [1, 2, 3] * 1000, "value": range(3000)})
    return str(frame.groupby("key")["value"].sum())


def arrow_compute() -> str:
    import pyarrow as pa

    table = pa.table({"key": [1, 2, 3] * 1000, "value": range(3000)})
    return str(table.group_by("key").aggregate([("value", "sum")]).sort_by("key").to_pydict())
