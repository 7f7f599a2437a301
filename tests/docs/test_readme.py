"""The README's tour: its commands are run, and what they print is what the README shows.

Record anew with: python tests/docs/test_readme.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
# What differs from run to run: hashes, durations, dates, ports; scores to three digits.
VOLATILE = [
    (re.compile(r"\b[0-9a-f]{7,32}\b"), "<hash>"),
    (re.compile(r"\b\d+(\.\d+)? (s|ms|min)\b"), "<time>"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "<date>"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:<port>"),
    (re.compile(r"\d+ req/s, p99 <time>  "), ""),
    (re.compile(r"(\d\.\d{3})\d+"), r"\1"),
    (re.compile(r", at <hash> \"[^\"]*\""), ""),
    (re.compile(r" +"), " "),
]


def blocks() -> list[str]:
    """The consoles of the README."""
    return BLOCK.findall(README.read_text())


def commands(block: str) -> list[str]:
    """Its lines after `$ `."""
    return [line[2:] for line in block.splitlines() if line.startswith("$ ")]


def perform(command: str, folder: Path) -> str:
    """Run one command as a reader would, with this checkout's `mlspec` first in the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stdout if done.stdout.endswith("\n") or not done.stdout else done.stdout + "\n"


def tour(folder: Path) -> list[str]:
    """All blocks as they come out when they are run in `folder`."""
    try:
        return [
            "".join(f"$ {command}\n{perform(command, folder)}" for command in commands(block))
            for block in blocks()
        ]
    finally:
        perform("cd tumours && mlspec destroy --yes", folder)


def steady(text: str) -> list[str]:
    """Lines without what differs from run to run; the order of things that run in parallel does not count."""
    for pattern, word in VOLATILE:
        text = pattern.sub(word, text)
    return sorted(line.strip() for line in text.splitlines() if not line.strip().endswith("..."))


def test_readme_shows_what_happens(tmp_path: Path) -> None:
    """A tour that is not true is worse than none."""
    for shown, real in zip(blocks(), tour(tmp_path), strict=True):
        assert steady(real) == steady(shown), (
            f"record anew with: python {Path(__file__).relative_to(ROOT)}\n{real}"
        )


def record() -> None:
    """Write the real output into the README."""
    with tempfile.TemporaryDirectory() as folder:
        real = iter(tour(Path(folder)))
    README.write_text(BLOCK.sub(lambda _: f"```console\n{next(real)}```", README.read_text()))


if __name__ == "__main__":
    record()
