"""Run `mlspec` in a process of its own, as a person does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def mlspec(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`mlspec ARGUMENTS` in a folder."""
    command = [sys.executable, "-m", "mlspec_reconciler.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=120)
