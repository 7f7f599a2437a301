"""`python -m benchmarks [NAME...]`: run benchmarks by name; without a name, all of them."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "startup": "what a quick command costs",
    "validate": "validation of large repositories, cold and cached",
    "noop_plan": "a plan that finds nothing to do over 10,000 objects",
    "pit_join": "point-in-time joins",
    "serving_chain": "a serving graph against a bare endpoint",
    "drift_report": "drift of many features from counts",
    "kube_apply": "1,000 apps on a real API server, beside kubectl",
}


def main(arguments: list[str]) -> int:
    """Run the named benchmarks one after the other; 1 when a name is unknown."""
    names = [one for one in arguments if not one.startswith("-")]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 1
    for name in names or BENCHMARKS:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
