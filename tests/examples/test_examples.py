"""The examples run, and say what is true. Their functions are for copying: they meet harder children here."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import support

EXAMPLES = Path(__file__).parents[2] / "examples"
# Their ends are so far away that a test that waits for them sees the wrong outcome, and fails.
SLEEP = "import time; time.sleep(30)"
FLOOD = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: print('spam ' * 1000)"


def run_example(name: str, directory: Path) -> str:
    """Run an example from a working directory that is not its own; its standard output."""
    ended = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


@pytest.fixture
def weather(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("weather")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What weather.py prints."""
    return run_example("weather.py", tmp_path_factory.mktemp("elsewhere"))


def test_hello_prints_what_its_child_says(tmp_path):
    assert run_example("hello.py", tmp_path) == "Hello, world, from a sandbox.\n"


class TestWeather:
    @pytest.mark.parametrize("year", [2012, 2013, 2014, 2015])
    def test_every_years_lines_are_what_pandas_computes_here(self, output, year):
        days = pd.read_csv(EXAMPLES / "data" / "seattle-weather.csv").query(f"date.str.startswith('{year}/')")
        expected = []
        for month in range(1, 13):
            of_month = days.query(f"date.str.startswith('{year}/{month:02}/')")
            rain, warmest = of_month["precipitation"].sum(), of_month["temp_max"].max()
            expected.append(f"{year}-{month:02} {rain:6.1f} mm of rain, {warmest:5.1f} °C at most")
        for kind in sorted(set(days["weather"])):
            expected.append(f"{year} {kind}: {(days['weather'] == kind).sum()} days")
        assert re.findall(rf"^{year} \| (.*)$", output, re.MULTILINE) == expected

    def test_the_cost_of_every_spawn_is_shown(self, output):
        rows = re.findall(r"^ +(\d{4}) +([\d.]+) +([\d.]+) +([\d.]+) +(\d+)$", output, re.MULTILINE)
        assert [row[0] for row in rows] == ["2012", "2013", "2014", "2015"]
        for _, spawned, first_byte, reaped, exit_code in rows:
            assert 0 < float(spawned) <= float(first_byte) <= float(reaped)
            assert exit_code == "0"

    def test_the_sandbox_of_the_children_is_complete(self, output, client):
        child = support.spawn(client, "")
        assert f"Each child is locked in by: {', '.join(child.layers)}.\n" in output
        support.communicate(child)

    def test_a_line_is_shown_while_its_child_is_still_running(self, weather, client):
        job = weather.spawn(client, "slow", [f"print('first'); {SLEEP}; print('second')", {}])
        shown = []

        def show(job, line):
            shown.append(line)
            job.child.kill()

        weather.follow([job], b"", show)
        assert shown == ["first"]
        assert job.exit_code == -signal.SIGKILL

    @pytest.mark.parametrize("source", ["", "import sys; sys.stdin.close()", "raise SystemExit(3)"])
    def test_a_child_need_not_read_what_it_is_given(self, weather, client, source):
        job = weather.spawn(client, "reads nothing", [source, {}])
        weather.follow([job], bytes(1_000_000), lambda *_: None)
        assert job.exit_code == (3 if "3" in source else 0)

    def test_more_input_than_a_pipe_holds_arrives_whole_at_every_child(self, weather, client):
        source = "import sys; print(len(sys.stdin.buffer.read()), end='')"
        jobs = [weather.spawn(client, f"child {n}", [source, {}]) for n in range(3)]
        shown = []
        weather.follow(jobs, bytes(1_000_000), lambda job, line: shown.append((job.name, line)))
        assert sorted(shown) == [(f"child {n}", "1000000") for n in range(3)]


class TestJudge:
    def test_every_program_gets_its_verdict(self, tmp_path):
        assert run_example("judge.py", tmp_path) == (
            "good: correct\n"
            "wrong: wrong: b'41\\n'\n"
            "broken: failed: ZeroDivisionError: division by zero\n"
            "crashing: failed with code -11\n"
            "endless: took too long, after no output\n"
            "verbose: took too long, after some output\n"
            "silent: took too long, after no output\n"
        )
