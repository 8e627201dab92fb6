"""What a child does. To add a workload, write a function and name it in ``WORKLOADS``."""

from __future__ import annotations

import sys


def hello() -> None:
    """Say hi."""
    print("hi", flush=True)


def groupby() -> None:
    """Group 1,000 rows with pandas and print the result."""
    import pandas as pd

    frame = pd.DataFrame({"key": [row % 10 for row in range(1000)], "value": range(1000)})
    print(frame.groupby("key")["value"].agg(["sum", "mean", "max"]), flush=True)


WORKLOADS = {
    "hello": hello,
    "groupby": groupby,
}


def run(name: str) -> None:
    """Be a child whose parent has not imported pandas."""
    WORKLOADS[name]()


def run_preloaded(name: str) -> None:
    """Be a child whose parent has imported pandas. If it has not, the figures would have the wrong name."""
    if "pandas" not in sys.modules:
        raise RuntimeError("pandas is not preloaded")
    WORKLOADS[name]()
