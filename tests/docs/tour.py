"""Tours: the console blocks of a page are played as a reader types them, and what they print is what the page shows.

    python tests/docs/tour.py                         # records every tour anew
    python tests/docs/tour.py docs/how-to/pin.md      # or some

A block shows commands after `$ ` (a line after `> ` belongs to the command before it) and what they print. Comments of the
page, which nobody sees, do what a tour needs and a reader does not:

    <!-- after: PAGE -->      first play that page (a path relative to this one)
    <!-- until: COMMAND -->   wait until it succeeds: what happens by itself takes its time

A command may name a run, request or commit that the page has shown before: when it is played, it names the same one there. While
a page is written, `late-<2>` stands for the second run of late.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PART = re.compile(r"```console\n(?P<console>.*?)```|<!-- (?P<word>after|until): (?P<rest>.*?) -->", re.DOTALL)
README = ROOT / "README.md"
TOPICS = ("retrain", "roll-back", "switch", "pin", "propose")
TOURS = (
    README,
    ROOT / "examples/parcels/README.md",
    *(ROOT / f"docs/how-to/{topic}.md" for topic in TOPICS),
)
"""What is played, on this machine. Pages about Kubernetes have their own test, with a cluster."""
PATIENCE = 240.0
"""Seconds that one command, or what is waited for, may take on a busy machine."""
# What differs from run to run: durations, dates of today, ports; scores to three digits. Dates of data are long ago.
VOLATILE = [
    (re.compile(r"\b\d+(\.\d+)? (s|ms|min|h)\b"), "<time>"),
    (re.compile(r"20(2[5-9]|[3-9]\d)-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?"), "<date>"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:<port>"),
    (re.compile(r"\d+ req/s, p99 <time>  "), ""),
    (re.compile(r"(\d\.\d{3})\d+"), r"\1"),
    (re.compile(r" +"), " "),
]
HASH = re.compile(r"(?P<stem>\b[a-z][\w-]*-)?\b(?P<hash>(?=[0-9a-f]*\d)[0-9a-f]{7,32})\b")
NUMBER = re.compile(r"(?P<stem>\b[a-z][\w-]*-)?<(?P<number>\d+)>")
ENVIRONMENT = {
    "NO_COLOR": "1",
    "KUBECONFIG": os.devnull,
    "LOGNAME": "ada",
    **{f"GIT_{role}_NAME": "Ada" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "ada@example.org" for role in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "init.defaultBranch",
    "GIT_CONFIG_VALUE_0": "main",
}


@dataclass
class Shell:
    """A reader's terminal: it stays in the folder into which the last command has gone. It begins in a clone of this
    repository, which holds the examples."""

    home: Path
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.home / "mlspec"
        self.folder.mkdir()
        (self.folder / "examples").symlink_to(ROOT / "examples")

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and output of one command, with this checkout's `mlspec` first in the path."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        place = self.home / "place"
        done = subprocess.run(
            ["bash", "-c", f'{command}\nend=$?; pwd > "{place}"; exit $end'],
            cwd=self.folder,
            env={**os.environ, **ENVIRONMENT, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if place.exists():
            self.folder = Path(place.read_text().strip())
        missing = "" if done.stdout.endswith("\n") or not done.stdout else "\n"
        return done.returncode, done.stdout + missing

    def until(self, command: str) -> None:
        """Wait for what happens by itself."""
        deadline = time.monotonic() + PATIENCE
        while self.run(command)[0] != 0:
            assert time.monotonic() < deadline, (
                f"it does not come true: {command}\n{self.run('mlspec status')[1]}"
            )
            time.sleep(0.3)

    def close(self) -> None:
        """Stop everything that the tour has started."""
        self.run("mlspec destroy --yes")
        for process in psutil.process_iter():
            try:
                if any(str(self.home) in word for word in process.cmdline()):
                    process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue


@dataclass
class Hashes:
    """Hashes by the order in which they appear, for each stem (`late-` of `late-0a7110bc`) by itself: names of runs, requests and
    commits differ from machine to machine, but which is which does not."""

    known: dict[str, list[str]] = field(default_factory=dict)

    def learn(self, text: str) -> None:
        """Number what is new. Lines of progress are not read: what runs in parallel comes in any order."""
        for line in text.splitlines():
            for found in HASH.finditer("" if is_progress(line) else line):
                known = self.known.setdefault(found["stem"] or "", [])
                if found["hash"] and found["hash"] not in known:
                    known.append(found["hash"])

    def numbered(self, text: str) -> str:
        """With `late-<1>` in the place of `late-0a7110bc`."""

        def number(found: re.Match[str]) -> str:
            stem, known = found["stem"] or "", self.known.get(found["stem"] or "", [])
            return f"{stem}<{known.index(found['hash']) + 1}>" if found["hash"] in known else found[0]

        return HASH.sub(number, text)

    def named(self, text: str) -> str:
        """With `late-0a7110bc` in the place of `late-<1>`."""

        def name(found: re.Match[str]) -> str:
            stem, place = found["stem"] or "", int(found["number"])
            known = self.known.get(stem, [])
            assert 0 < place <= len(known), f"{found[0]} was not shown yet: {known}"
            return stem + known[place - 1]

        return NUMBER.sub(name, text)


@dataclass
class Player:
    """Plays pages, one after the other. A command that names a run of the page names the same one here."""

    shell: Shell
    shown: Hashes = field(default_factory=Hashes)
    real: Hashes = field(default_factory=Hashes)

    def play(self, page: Path) -> Iterator[str]:
        """The consoles of a page as they come out."""
        for found in PART.finditer(page.read_text()):
            match found["word"]:
                case "after":
                    for _ in self.play(page.parent / found["rest"]):
                        pass
                case "until":
                    self.shell.until(found["rest"])
                case _:
                    yield "".join(self._perform(*one) for one in commands(found["console"]))

    def _perform(self, command: str, output: str) -> str:
        command = self.real.named(self.shown.numbered(command))
        answer = self.shell.run(command)[1]
        self.shown.learn(output)
        self.real.learn(answer)
        first, *more = command.split("\n")
        return "\n".join([f"$ {first}", *(f"> {line}" for line in more), answer])


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands of one block with the lines that belong to them, and what each one prints."""
    for part in re.split(r"(?m)^\$ ", block)[1:]:
        first, *lines = part.splitlines(keepends=True)
        more = [line[2:] for line in itertools.takewhile(lambda line: line.startswith("> "), lines)]
        yield "".join([first, *more]).rstrip("\n"), "".join(lines[len(more) :])


def blocks(page: Path) -> list[str]:
    """The consoles of a page."""
    return [found["console"] for found in PART.finditer(page.read_text()) if found["console"] is not None]


def played(page: Path, folder: Path) -> list[str]:
    """The consoles of a page, played in an empty folder."""
    shell = Shell(folder)
    try:
        return list(Player(shell).play(page))
    finally:
        shell.close()


def is_progress(line: str) -> bool:
    """Whether a line only says that something has begun."""
    return line.strip().endswith("...")


def steady(text: str) -> list[str]:
    """Lines without what differs from run to run; the order of things that run in parallel does not count."""
    hashes = Hashes()
    hashes.learn(text)
    text = hashes.numbered(text)
    for pattern, word in VOLATILE:
        text = pattern.sub(word, text)
    return sorted(line.strip() for line in text.splitlines() if not is_progress(line))


def check(page: Path, folder: Path) -> None:
    """Play a page and compare: the whole page at once, so that a run has one number in all of its consoles."""
    real = "".join(played(page, folder))
    how = f"record anew with: python tests/docs/tour.py {page.relative_to(ROOT)}"
    assert steady(real) == steady("".join(blocks(page))), f"{how}\n{real}"


def record(page: Path) -> None:
    """Write the real output into the page."""
    with tempfile.TemporaryDirectory() as folder:
        real = iter(played(page, Path(folder)))
    text = page.read_text()
    page.write_text(
        PART.sub(lambda one: one[0] if one["console"] is None else f"```console\n{next(real)}```", text)
    )


if __name__ == "__main__":
    for chosen in [Path(name).absolute() for name in sys.argv[1:]] or TOURS:
        print(f"{chosen.relative_to(ROOT)} ...", flush=True)
        record(chosen)
