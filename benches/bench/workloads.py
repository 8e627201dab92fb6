"""What a child does. To add a workload, write a function and name it in ``WORKLOADS``.

All of them print the same wherever they run: the harness compares. All but ``empty`` print once, at their end.
"""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

# Read before any child is made: not every sandbox has a file there.
_WEATHER = (Path(__file__).parents[2] / "examples" / "data" / "seattle-weather.csv").read_text()


def empty() -> None:
    """End at once."""


def hello() -> None:
    """Say hi."""
    print("hi", flush=True)


def matmul() -> None:
    """Multiply matrices of 200 by 200 floats with numpy. They hold small integers, so that no sum is rounded."""
    import numpy as np

    numbers = np.arange(40_000, dtype=np.float64).reshape(200, 200)
    product = (numbers % 7) @ (numbers % 11)
    for _ in range(3):
        product = (product % 13) @ (numbers % 11)
    print(int(product.sum()), int(product.trace()), flush=True)


def groupby() -> None:
    """Group 1,000 rows with pandas and print the result."""
    import pandas as pd

    frame = pd.DataFrame({"key": [row % 10 for row in range(1000)], "value": range(1000)})
    print(frame.groupby("key")["value"].agg(["sum", "mean", "max"]), flush=True)


def read_csv() -> None:
    """Parse 48 KB of CSV with pandas, and count the days of each kind of weather."""
    import pandas as pd

    frame = pd.read_csv(io.StringIO(_WEATHER), parse_dates=["date"])
    counts = frame["weather"].value_counts().sort_index().to_dict()
    print(len(frame), frame["date"].max().date(), frame["temp_max"].max(), counts, flush=True)


def heavy_imports() -> None:
    """Import much, of which ``import pandas`` has loaded most, and use what pandas itself imports only when it is needed."""
    import numpy.linalg
    import pandas as pd
    import pyarrow as pa

    table = pa.table({"norm": [float(numpy.linalg.norm([3, 4]))]})
    lazy = "pandas.io.formats.html"
    if lazy in sys.modules:
        raise RuntimeError(f"{lazy} is no longer imported lazily")
    print(pd.DataFrame(table.to_pydict()).to_html(), lazy in sys.modules, flush=True)


WORKLOADS = {
    "empty": empty,
    "hello": hello,
    "numpy matmul": matmul,
    "pandas groupby": groupby,
    "pandas read_csv": read_csv,
    "heavy imports": heavy_imports,
}

HELD_SUFFIX = ", held"
"""A workload with that name, and then the child says so and waits to be killed."""
HELD_LINE = "held\n"


def warm_up() -> None:
    """Touch what the workloads will touch, as an application's own warm-up would: nothing is printed, nothing kept."""
    import pandas as pd

    frame = pd.DataFrame({"key": [0, 1, 0], "value": range(3)})
    str(frame.groupby("key")["value"].agg(["sum", "mean", "max"]))
    pd.read_csv(io.StringIO("date,weather\n2012-01-01,sun\n"), parse_dates=["date"])["weather"].value_counts()
    values = frame.to_numpy(dtype=float)
    str(values.T @ values)


def run(name: str) -> None:
    """Be a child whose parent has not imported pandas."""
    WORKLOADS[name.removesuffix(HELD_SUFFIX)]()
    if name.endswith(HELD_SUFFIX):
        print(HELD_LINE, end="", flush=True)
        signal.pause()


def run_preloaded(name: str) -> None:
    """Be a child whose parent has imported pandas. If it has not, the figures would have the wrong name."""
    if "pandas" not in sys.modules:
        raise RuntimeError("pandas is not preloaded")
    run(name)
