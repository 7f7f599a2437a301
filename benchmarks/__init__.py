"""What mlspec costs: one module for each question, each with `main()`; `python -m benchmarks` lists them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the test bed: a real control plane to measure on
