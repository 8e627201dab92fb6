"""The benchmark's tables, files and charts say what was measured, and are well-formed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from bench import headline, memory, plots, report, throughput
from bench.contestants import BASELINE, COLD, FORK, WARM, WARM_UP, YARDSTICK
from bench.headline import Comparison
from bench.latency import Results, Samples
from bench.workloads import WORKLOADS

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
NAMES = (COLD, WARM, WARM_UP, BASELINE, FORK)
HARD_NAME = "<&'\">"


def samples(seconds: float) -> Samples:
    """What is measured of who always takes so long to the first byte."""
    return Samples([seconds / 2] * 10, [seconds] * 10, [2 * seconds] * 10)


def results() -> Results:
    """1.0 takes twice as long as cold ours, which takes twice as long as the fork."""
    found = {
        workload: {COLD: samples(0.004), WARM: samples(0.001), WARM_UP: samples(0.001)}
        | {BASELINE: samples(0.008), FORK: samples(0.002)}
        for workload in WORKLOADS
    }
    found["numpy matmul"][BASELINE] = Samples(error="it | cannot")
    found["hello"][YARDSTICK.name] = samples(0.0005)
    return found


def comparisons() -> list[Comparison]:
    return headline.comparisons(
        results(),
        {WARM: {1: 50.0, 4: 100.0}, BASELINE: {1: 30.0, 4: 50.0}, FORK: {1: 200.0}},
        {COLD: 4.0, BASELINE: 8.0, FORK: -1.0},
        {
            memory.PARKED: {WARM: memory.Figures(500, 500, 100, 700)},
            memory.IDLE: {WARM: memory.Figures(1, 1, 1, 1), BASELINE: memory.Figures(1000, 2000, 100, 700)},
            memory.WORKING: {},
        },
    )


def ratios(name: str) -> dict[str, float]:
    found = next(comparison for comparison in comparisons() if comparison.name == name)
    return {peer: round(ratio, 6) for peer, ratio in found.ratios.items()}


def test_ratios_say_how_many_times_better_ours_is() -> None:
    assert ratios("warm-first-byte") == {BASELINE: 8, FORK: 2}
    assert ratios("cold-first-byte") == {BASELINE: 2, FORK: 0.5}
    assert ratios("cold-reaped") == {BASELINE: 2, FORK: 0.5}
    assert ratios("warm-groupby") == {BASELINE: 8, FORK: 2}


def test_more_spawns_a_second_are_better_and_who_stands_one_thread_has_its_figure() -> None:
    assert ratios("sustained") == {BASELINE: 2, FORK: 0.5}


def test_what_noise_has_drowned_is_not_compared() -> None:
    assert ratios("cpu") == {BASELINE: 2}


def test_memory_is_that_of_our_parked_children() -> None:
    assert ratios("memory") == {BASELINE: 3}


def test_without_ours_there_is_no_comparison() -> None:
    latencies = results()
    latencies["hello"][WARM] = Samples(error="not there")
    found = headline.comparisons(latencies, {}, {}, {state: {} for state in (memory.IDLE, memory.PARKED)})
    assert [comparison.name for comparison in found] == ["cold-first-byte", "cold-reaped", "warm-groupby"]


def test_a_warm_first_byte_is_measured_by_the_bare_round_trip() -> None:
    assert "takes 0.500 ms" in " ".join(headline.markdown(comparisons(), results()))
    assert "takes 2.0 times that" in " ".join(headline.markdown(comparisons(), results()))


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 2.5), (100, 4)])
def test_percentiles_lie_between_samples(percent: float, expected: float) -> None:
    assert report.percentile([4, 1, 3, 2], percent) == expected


def test_a_report_has_whole_tables_and_all_errors(tmp_path: Path) -> None:
    text = written(tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    tables = re.split(r"\n(?!\|)", text)
    for table in tables:
        columns = {row.replace("\\|", "").count("|") for row in table.splitlines() if row.startswith("|")}
        assert len(columns) <= 1, table
    assert f"| {COLD} | 10 | 2.00 / 2.00 / 2.00 | 4.00 / 4.00 / 4.00 | 8.00 / 8.00 / 8.00 |" in rows
    assert any("it \\| cannot" in row for row in rows)
    assert "    it went wrong" in text
    assert "- kernel: 7" in text


def test_files_have_every_sample_and_every_chart(tmp_path: Path) -> None:
    (tmp_path / "old.svg").write_text("of a run that measured something else")
    written(tmp_path)
    document = json.loads((tmp_path / "benchmarks.json").read_text())
    assert document["latencies"]["hello"][COLD]["first_byte"] == [4000] * 10
    assert document["times better"]["hello, warm: spawn to first byte"][BASELINE] == 8
    assert document["other"] == {"figure": 1.235}
    charts = {path.name for path in tmp_path.glob("*.svg")}
    assert charts == {f"{comparison.name}.svg" for comparison in comparisons()}
    for name in charts:
        stays_inside(ElementTree.parse(tmp_path / name).getroot())
    assert charts == set(re.findall(r"\]\((.*\.svg)\)", (tmp_path / "benchmarks.md").read_text()))


def written(directory: Path) -> str:
    sustained = {COLD: {1: 10.0, 4: 20.0}, FORK: {1: 5.0}}
    text = report.markdown(
        results(), comparisons(), [throughput.markdown(sustained)], {FORK: "it went wrong"}, {"kernel": "7"}
    )
    report.write(
        directory,
        text=text,
        latencies=results(),
        comparisons=comparisons(),
        others={"other": {"figure": 1.23456}},
        facts={"kernel": "7"},
    )
    return (directory / "benchmarks.md").read_text()


def chart(**of: float) -> ElementTree.Element:
    return ElementTree.fromstring(plots.bar_chart(Comparison("x", HARD_NAME, HARD_NAME, "1 ms", of)))


def test_bars_grow_with_the_powers_of_ten_and_begin_at_one() -> None:
    ten, thousand, tenth = chart(a=10, b=1000, c=0.1).iter(f"{SVG}rect")
    lengths = [float(bar.attrib["width"]) for bar in (ten, thousand, tenth)]
    assert lengths == pytest.approx([lengths[0], 3 * lengths[0], lengths[0]], abs=0.3)
    starts = [float(bar.attrib["x"]) for bar in (ten, thousand, tenth)]
    assert starts == pytest.approx([starts[0], starts[0], starts[0] - lengths[0]], abs=0.3)
    assert [bar.attrib["class"] for bar in (ten, thousand, tenth)] == ["better", "better", "worse"]


@pytest.mark.parametrize("ratio", [0.0003, 0.9999, 1, 1.2, 55, 987_654])
def test_nothing_leaves_the_chart(ratio: float) -> None:
    stays_inside(chart(a=ratio, b=2))


def test_names_are_text_whatever_they_are() -> None:
    texts = [text.text for text in chart(**{HARD_NAME: 2}).iter(f"{SVG}text")]
    assert HARD_NAME in texts


def test_a_chart_has_colours_for_dark_pages() -> None:
    assert "prefers-color-scheme: dark" in str(chart(a=2).findtext(f"{SVG}style"))


def stays_inside(root: ElementTree.Element) -> None:
    """All bars and texts lie in the picture, texts of average letters of 13 pixels' height."""
    letter = 7.5
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    bars = list(root.iter(f"{SVG}rect"))
    assert bars
    for bar in bars:
        left, length = float(bar.attrib["x"]), float(bar.attrib["width"])
        assert (left >= 0, length > 0, left + length <= width) == (True, True, True)
    for text in root.iter(f"{SVG}text"):
        x, y, length = float(text.attrib["x"]), float(text.attrib["y"]), letter * len(text.text or "")
        left = x - {"end": length, "middle": length / 2}.get(text.attrib.get("text-anchor", ""), 0)
        assert (left >= 0, left + length <= width, 0 < y < height) == (True, True, True), text.text
