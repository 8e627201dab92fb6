"""What a child must be able to do.

Each function imports what it needs itself: the zygote may have done so before it, or not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

TABLE: dict[str, list[Any]] = {"key": [1, 2, 1, 3] * 250, "value": list(range(1000))}
SUMS = {
    key: sum(v for k, v in zip(TABLE["key"], TABLE["value"], strict=True) if k == key) for key in (1, 2, 3)
}


def run(name: str) -> None:
    """Be the child: do one of the below, and say so at its end."""
    globals()[name]()
    print(name, "done")


def threads_now() -> int:
    """Number of this process's threads, the first one included."""
    return len(list(Path("/proc/self/task").iterdir()))


def assert_more_than_one_thread() -> None:
    assert threads_now() > 1 or len(os.sched_getaffinity(0)) == 1


def thread() -> None:
    import threading

    results: list[int] = []
    worker = threading.Thread(target=lambda: results.append(threading.get_native_id()))
    worker.start()
    worker.join()
    assert results
    assert results != [threading.get_native_id()]


def thread_pool() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))


def echo() -> None:
    import subprocess

    result = subprocess.run(["/bin/echo", "hi"], check=True, capture_output=True)
    assert (result.stdout, result.stderr) == (b"hi\n", b"")


def event_loop() -> None:
    import asyncio

    async def main() -> None:
        assert await asyncio.gather(asyncio.sleep(0, 1), asyncio.to_thread(abs, -2)) == [1, 2]
        process = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=asyncio.subprocess.PIPE)
        assert await process.communicate() == (b"hi\n", None)
        assert process.returncode == 0

    asyncio.run(main())


def sqlite() -> None:
    import sqlite3
    import tempfile

    with tempfile.TemporaryDirectory() as directory, sqlite3.connect(f"{directory}/a.sqlite") as database:
        database.execute("create table t (key, value)")
        database.executemany("insert into t values (?, ?)", zip(TABLE["key"], TABLE["value"], strict=True))
        sums = dict(database.execute("select key, sum(value) from t group by key"))
        assert sums == SUMS
    database.close()


def matmul() -> None:
    """Large enough that every BLAS uses all its threads. Small whole numbers: the sums are exact."""
    import numpy as np

    left = np.arange(1500 * 1500, dtype=float).reshape(1500, 1500) % 7
    right = left.T.copy()
    product = left @ right
    assert_more_than_one_thread()
    assert product.sum() == left.sum(axis=0) @ right.sum(axis=1)


def parquet() -> None:
    import io
    import tempfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(TABLE)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    assert pq.read_table(buffer, use_threads=True).equals(table)
    with tempfile.TemporaryDirectory() as directory:
        pq.write_table(table, Path(directory, "a.parquet"))
        assert pq.read_table(Path(directory, "a.parquet"), use_threads=True).equals(table)
    assert_more_than_one_thread()


def groupby() -> None:
    import pandas as pd

    sums = pd.DataFrame(TABLE).groupby("key").agg({"value": "sum"})
    assert sums["value"].to_dict() == SUMS


def k_means() -> None:
    import numpy as np
    from sklearn.cluster import KMeans

    corners = np.array([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    points = (corners[:, None] + np.random.default_rng(0).random((1000, 2))).reshape(-1, 2)
    # Several chunks of 256 samples: the OpenMP loop has something to share out.
    labels = KMeans(3, random_state=0).fit_predict(points)
    assert_more_than_one_thread()
    assert sorted(np.bincount(labels)) == [1000, 1000, 1000]


def forest() -> None:
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    features = np.random.default_rng(0).random((300, 4))
    labels = features[:, 0] > 0.5
    classifier = RandomForestClassifier(10, n_jobs=2, random_state=0).fit(features, labels)
    assert classifier.score(features, labels) > 0.9


def prange() -> None:
    import numba
    import numpy as np

    @numba.njit(parallel=True)
    def total(numbers):
        result = 0.0
        for i in numba.prange(numbers.size):
            result += numbers[i]
        return result

    assert total(np.arange(100_000.0)) == 100_000 * 99_999 / 2
    assert_more_than_one_thread()


def polars_group_by() -> None:
    import polars as pl

    sums = pl.DataFrame(TABLE).group_by("key").agg(pl.col("value").sum())
    assert dict(sums.iter_rows()) == SUMS
    assert_more_than_one_thread()


def duckdb_group_by() -> None:
    import duckdb

    database = duckdb.connect()
    counts = database.execute("select range % 3, count(*) from range(900000) group by 1").fetchall()
    assert_more_than_one_thread()
    assert sorted(counts) == [(0, 300_000), (1, 300_000), (2, 300_000)]


def plot() -> None:
    import io

    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    plt.plot([1, 4, 9])
    plt.title("squares")
    plt.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def xml() -> None:
    from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

    root = etree.fromstring("<a><b>1</b><b>2</b></a>")
    assert root.xpath("sum(//b)") == 3
