"""Asks a serving graph from where a pod stands: run in the network of the node, it reaches Services by their names.

    python passengers.py EXAMPLE URL --since 2013-04-01 --until 2013-04-15 --share 0.1 --out FILE
    python passengers.py EXAMPLE URL --since 2013-04-01 --until 2013-04-15 --share 0.1 --out FILE --until-file STOP

With `--until-file` it goes on, each time over a new connection, until that file exists. FILE gets the tally as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pandas as pd


def main() -> None:
    """Ask, and write the tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", type=Path)
    parser.add_argument("url")
    parser.add_argument("--since", required=True)
    parser.add_argument("--until", required=True)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until-file", type=Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.example))
    import load  # type: ignore[import-not-found]
    from replay import Passengers  # type: ignore[import-not-found]

    passengers = Passengers(arguments.url, "late-arrival", load.flights(), arguments.share)
    stop = arguments.until_file
    while True:
        for _ in passengers.ask(arguments.since, arguments.until):
            if stop is not None:
                passengers.connection.close()  # each request meets the Service anew, as those of many clients do
                time.sleep(0.02)
                if stop.exists():
                    break
        if stop is None or stop.exists():
            break
    tally = passengers.tally
    scores = pd.concat(tally.scores)["score"].tolist()
    document = {"requests": tally.requests, "failed": tally.failed, "runs": tally.runs, "scores": scores}
    arguments.out.write_text(json.dumps(document))


if __name__ == "__main__":
    main()
