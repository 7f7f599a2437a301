"""CPU seconds of commands that editors and commit hooks call on every save; the goal is 0.3 s each.

    python -m benchmarks startup

Whole processes, best of five, beside an empty Python process in the same run.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROUNDS = 5
MLSPEC = ["-m", "mlspec_reconciler.cli"]
COMMANDS = {
    "an empty process": ["-c", ""],
    "mlspec --help": [*MLSPEC, "--help"],
    "mlspec validate examples/minimal, not cached": [*MLSPEC, "validate", "--no-cache", "examples/minimal"],
    "mlspec validate examples/minimal, cached": [*MLSPEC, "validate", "examples/minimal"],
    "mlspec validate examples/flights, not cached": [*MLSPEC, "validate", "--no-cache", "examples/flights"],
    "mlspec validate examples/flights, cached": [*MLSPEC, "validate", "examples/flights"],
}


def main() -> None:
    """Print a line for each command."""
    for name, arguments in COMMANDS.items():
        print(f"{name:<46} {seconds(arguments):.2f} s CPU", flush=True)


def seconds(arguments: list[str]) -> float:
    """Least CPU seconds of one call, with bytecode as an installed package has it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    best = float("inf")
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


if __name__ == "__main__":
    main()
