"""The process that one contestant lives in: it keeps it ready, and does with it what it is told to.

It reads JSON lines on standard input, each with the name of a function of ``actions`` and its arguments, and answers
each with one on standard output:

    (start)                                    -> {"seconds": …}
    {"action": "spawn", "workload": "hello"}   -> {"spawn_call": …, "first_byte": …, "reaped": …, "output": "hi\\n"}
    end of file                                -> it ends

or, instead of any answer, {"error": "…"}. Times are in seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from . import actions
from .environments import UnavailableError

if TYPE_CHECKING:
    from .contestants import Contestant


def main(module: str, options: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    # Only answers go to what the harness reads. What anybody else prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    started = time.perf_counter()
    try:
        contestant: Contestant = importlib.import_module(f"bench.contestants.{module}").start(**options)
    except UnavailableError as error:
        answer({"error": str(error)})
        return
    except Exception:
        answer({"error": traceback.format_exc()})
        return
    answer({"seconds": time.perf_counter() - started})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(actions.ACTIONS[request.pop("action")](contestant, **request))
        except Exception:
            answer({"error": traceback.format_exc()})
    contestant.close()
