"""The README's tour: its commands are run, and what they print is what the README shows.

Record anew with: python tests/docs/tour.py README.md
"""

from __future__ import annotations

from pathlib import Path

from docs import tour


def test_readme_shows_what_happens(tmp_path: Path) -> None:
    """A tour that is not true is worse than none."""
    tour.check(tour.README, tmp_path)
