"""The printed programs in the README are what the printer prints."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import engine_tables, method_tables, tensorrt_tables
from benchmarks.tables import (
    ENGINES_FILE,
    METHODS_FILE,
    TENSORRT_FILE,
    machine_line,
    read,
    speed_table,
)

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"


def printed_blocks() -> list[list[str]]:
    """The code blocks without a language, line by line."""
    text = (ROOT / "README.md").read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block.splitlines() for language, block in fenced if not language]


def is_subsequence(block: list[str], lines: list[str]) -> bool:
    """Whether the block's lines stand in the program in this order."""
    rest = iter(lines)
    wanted = [line.strip() for line in block if line.strip() != "..."]
    return all(any(line.strip() == want for line in rest) for want in wanted)


def test_the_readme_shows_the_goldens() -> None:
    gated, reused = printed_blocks()
    for block, name in ((gated, "cached"), (reused, "reuse")):
        golden = (GOLDEN / f"cogvideox_{name}.txt").read_text().splitlines()
        assert is_subsequence(block, golden)
        assert not is_subsequence([*block, "no such line"], golden)


def test_the_readme_shows_the_committed_figures() -> None:
    text = (ROOT / "README.md").read_text()
    assert speed_table(read()) in text
    assert machine_line(read()[-1]) in text


def test_the_docs_show_the_committed_comparisons() -> None:
    for page, file, tables in (
        ("methods.md", METHODS_FILE, method_tables),
        ("engines.md", ENGINES_FILE, engine_tables),
        ("engines.md", TENSORRT_FILE, tensorrt_tables),
    ):
        text = (ROOT / "docs" / page).read_text()
        (result,) = read((file,))
        assert all(paragraph in text for paragraph in tables.paragraphs(result))


def test_links_of_the_docs_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
