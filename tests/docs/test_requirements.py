"""What `pip install .` may choose, and what is locked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = [
    Requirement(line)
    for line in (
        *PROJECT["build-system"]["requires"],
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
    )
]
LOCKED = {
    canonicalize_name(name): set(re.findall(rf"(?m)^{re.escape(name)}(?:\[\w+\])?==(\S+)", text))
    for text in [(ROOT / "requirements/dev.txt").read_text()]
    for name in re.findall(r"(?m)^([\w.-]+)(?:\[\w+\])?==", text)
}
CALENDAR = {"tzdata"}
"""Versions are dates, and the newest data is the right one."""


@pytest.mark.parametrize("declared", DECLARED, ids=lambda one: one.name)
def test_every_dependency_ends_before_its_next_major(declared: Requirement) -> None:
    """An open end broke `pip install .`: python-dateutil 4 came out, and pip found no way back to 2."""
    ends = [one for one in declared.specifier if one.operator == "<"]
    assert (len(ends) == 1) is (declared.name not in CALENDAR)


@pytest.mark.parametrize("declared", DECLARED, ids=lambda one: one.name)
def test_what_is_locked_is_what_a_user_may_get(declared: Requirement) -> None:
    """The tests run with the locked versions; bounds that exclude them would promise what nobody tried."""
    locked = LOCKED[canonicalize_name(declared.name)]
    assert locked
    assert all(declared.specifier.contains(version) for version in locked)


@pytest.mark.parametrize("name", ["dev.txt", "runtime.txt"])
def test_the_locked_files_name_hashes_and_no_index(name: str) -> None:
    """A host of the machine that locked would be asked by everybody who installs."""
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    pins = re.split(r"(?m)^(?=\S)", text)[1:]
    assert len(pins) > 50
    assert all("==" in pin.partition("\n")[0] and "--hash=sha256:" in pin for pin in pins)
