"""The documentation is true where a machine can tell: its code runs and prints what it says, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import internet
import pyspawner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _pytest.mark import ParameterSet

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "SECURITY", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NETWORK_PAGE = ROOT / "docs" / "network.md"
FOLDERS = "crates|python|tests|examples|docs|benches|fuzz|tools"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    output: str | None
    """The text block that follows with nothing in between: what the code prints."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """Every fenced block, also in a list; the text blocks that are outputs are part of what they follow."""
    fence = re.compile(
        r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```\n", re.MULTILINE | re.DOTALL
    )
    text = page.read_text()
    found: list[Block] = []
    end_of_code = None
    for match in fence.finditer(text):
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        line = text.count("\n", 0, match.start()) + 1
        if match["language"] == "text" and end_of_code is not None:
            if not text[end_of_code : match.start()].strip():
                last = found.pop()
                found.append(Block(page, last.line, last.language, last.code, code))
        else:
            found.append(Block(page, line, match["language"], code, None))
        end_of_code = match.end() if match["language"] == "python" else None
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```\n", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names of its headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def targets() -> set[str]:
    """What make can be asked for, by a rule and not merely as a name in .PHONY."""
    rules = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(rules)


BLOCKS = [block for page in PAGES for block in blocks(page)]
LINKS = [
    pytest.param(page, link, id=f"{name(page)} to {link}")
    for page in PAGES
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page))
    if not re.match(r"https?:", link)
]
MODULES = [
    pytest.param(f"pyspawner.{path.stem}".removesuffix(".__init__"), id=path.name)
    for path in sorted(Path(pyspawner.__file__).parent.glob("*.py"))
    if ">>>" in path.read_text()
]


def scripts(is_wanted: Callable[[Path], bool]) -> list[ParameterSet]:
    return [
        pytest.param(block, id=f"{name(block.page)}:{block.line}")
        for block in BLOCKS
        if block.language == "python" and is_wanted(block.page)
    ]


def run(
    *arguments: str | Path, directory: Path, within: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*within, sys.executable, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check_that_it_runs(block: Block, tmp_path: Path, within: Sequence[str] = ()) -> None:
    # A block may have a name, for its child_main: a comment in its first line.
    file_name = re.match(r"# (\w+\.py)\n", block.code)
    script = tmp_path / (file_name[1] if file_name else "example.py")
    script.write_text(block.code)
    done = run(script, directory=tmp_path, within=within)
    assert (done.returncode, done.stderr) == (0, ""), done
    if block.output is not None:
        assert done.stdout == block.output


@pytest.mark.parametrize("block", scripts(lambda page: page != NETWORK_PAGE))
def test_code_runs_as_it_stands_and_prints_what_the_page_says(block: Block, tmp_path: Path) -> None:
    check_that_it_runs(block, tmp_path)


@pytest.mark.parametrize("block", scripts(lambda page: page == NETWORK_PAGE))
def test_so_does_code_about_networks_where_there_is_an_internet(
    block: Block, tmp_path: Path, world: internet.World
) -> None:
    check_that_it_runs(block, tmp_path, world.host.namespace.command())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_is_understood(page: Path) -> None:
    """Or a block with a slip in its marks would pass unseen."""
    fences = re.findall(r"^ *```", page.read_text(), re.MULTILINE)
    found = blocks(page)
    assert len(fences) == 2 * (len(found) + sum(block.output is not None for block in found))
    assert {block.language for block in found} <= {"", "python", "sh"}, "or a text block belongs to no code"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_knows_every_target_that_a_page_names(page: Path) -> None:
    commands = [line for block in blocks(page) if block.language == "sh" for line in block.code.splitlines()]
    spans = re.findall(r"`([^`]+)`", prose(page))
    named = {match[1] for text in commands + spans if (match := re.match(r"make ([\w-]+)", text))}
    assert named - targets() == set()


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_to_a_file_and_its_heading(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    assert target.exists()
    assert not anchor or anchor in anchors(target)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_path_in_the_text_exists(page: Path) -> None:
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", prose(page))
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_are_true(module: str, tmp_path: Path) -> None:
    check = f"import doctest, sys, {module}; sys.exit(doctest.testmod(sys.modules[{module!r}]).failed)"
    done = run("-c", check, directory=tmp_path)
    assert done.returncode == 0, done.stdout


def test_there_is_something_to_check() -> None:
    assert len(PAGES) >= 7
    assert {name(block.page) for block in BLOCKS if block.language == "python"} >= {
        "README.md",
        "SECURITY.md",
    }
    assert sum(block.output is not None for block in BLOCKS) >= 4
    assert LINKS
    assert MODULES
    assert {"run", "test"} <= targets()
    assert "quick-start" in anchors(ROOT / "README.md")
