"""`python -m cluster.bed build [GROUP ...]`: builds binaries of the bed before they are needed. `make controlplane` calls it."""

from __future__ import annotations

import argparse
import sys

from cluster.bed import build


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster.bed", description=__doc__)
    parser.add_argument("command", choices=["build"])
    parser.add_argument(
        "names", nargs="+", metavar="GROUP|BINARY", help=f"{', '.join(build.GROUPS)}, or one binary"
    )
    arguments = parser.parse_args()
    try:
        for name in arguments.names:
            for each in build.GROUPS.get(name, (name,)):
                print(each, build.binary(each))
    except build.Unavailable as missing:
        # Not an error: tests that need the control plane skip loudly and say the same.
        build.say(f"skipped: {missing}")
    except build.BuildFailed as failed:
        build.say(str(failed))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
