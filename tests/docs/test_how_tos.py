"""Every rule of the life of a model has a page that is played here: retraining, revert, pin, switch, propose.

Record anew with: python tests/docs/tour.py PAGE
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import tour

PAGES = {str(page.relative_to(tour.ROOT)): page for page in tour.TOURS if page != tour.README}


@pytest.mark.parametrize("page", PAGES)
def test_a_how_to_shows_what_happens(page: str, tmp_path: Path) -> None:
    """Who follows a page, at night or for the first time, sees what it shows."""
    tour.check(PAGES[page], tmp_path)


def test_every_console_is_played_somewhere() -> None:
    """A page with a console that no test plays is true on the day when it is written."""
    elsewhere = (Path(__file__).parent / "test_kubernetes_pages.py").read_text()
    pages = [page for page in (tour.ROOT / "docs").rglob("*.md") if tour.blocks(page)]
    assert [page.name for page in pages if page not in tour.TOURS and page.name not in elsewhere] == []


def test_the_same_run_is_the_same_in_every_line() -> None:
    """Hashes differ from machine to machine; which of two runs serves must not."""
    shown = "> train late (late-0a7110bc)\nserves late-0a7110bc, not late-95730a1c"
    again = "> train late (late-11110000)\nserves late-11110000, not late-22220000"
    other = "> train late (late-11110000)\nserves late-22220000, not late-11110000"
    assert tour.steady(shown) == tour.steady(again) != tour.steady(other)


def test_every_rule_has_a_section_with_an_example() -> None:
    """The code refers to the rules by number, and a rule without an example is understood by those who know it already."""
    text = (tour.ROOT / "docs/lifecycle.md").read_text()
    sections = re.findall(r"(?m)^## (\d+)\. (.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert [int(number) for number, _ in sections] == list(range(1, 14))
    assert [number for number, section in sections if section.count("```") < 2] == []
