"""The depot of a parcel service, played: it asks for each parcel whether somebody will be at home, delivers, and exports.

    python depot.py 2024-06-01        # everything until this day

`parcels.csv` is what its system exports: every parcel whose first attempt is over. From 6 June 2024 on, people may name
a neighbour: who lives in a flat is hardly missed any more, and the hour matters less.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

EXPORT = Path("parcels.csv")
OPENED = datetime(2024, 1, 1)
NEIGHBOURS = datetime(2024, 6, 6)
PARCELS = 60
"""Per day."""
OVER = timedelta(hours=12)
"""After the slot has begun, an attempt is over and its result is known."""


def parcels(day: datetime) -> Iterator[dict[str, object]]:
    """The parcels of one day, the same each time."""
    chance = random.Random(day.toordinal())
    for number in range(PARCELS):
        slot = day + timedelta(hours=chance.randrange(8, 20))
        flat, misses = chance.random() < 0.5, min(4, int(chance.expovariate(0.9)))
        early = slot.hour < 17
        if slot < NEIGHBOURS:
            risk = 0.04 + 0.40 * early + 0.25 * (early and flat) + 0.02 * misses
        else:
            risk = 0.06 + 0.02 * early + 0.30 * (not flat) + 0.14 * misses
        yield {
            "parcel": f"{day:%y%m%d}-{number:02}",
            "slot": f"{slot:%Y-%m-%dT%H:%M:%SZ}",
            "closed": f"{slot + OVER:%Y-%m-%dT%H:%M:%SZ}",
            "flat": int(flat),
            "misses": misses,
            "missed": int(chance.random() < risk),
        }


def days(since: datetime, until: datetime) -> Iterator[datetime]:
    """Every day in [since, until)."""
    return (since + timedelta(days=number) for number in range((until - since).days))


def exported() -> datetime:
    """The day until which the depot has delivered."""
    if not EXPORT.exists():
        return OPENED
    newest = max(row["slot"] for row in csv.DictReader(EXPORT.open()))
    return datetime.fromisoformat(newest[:10]) + timedelta(days=1)


def ask(url: str, since: datetime, until: datetime) -> int:
    """Ask about the parcels of each day before they are delivered; the number of parcels."""
    names = {"parcel": "BYTES", "slot": "BYTES", "flat": "INT64", "misses": "INT64"}
    asked = 0
    for day in days(since, until):
        rows = list(parcels(day))
        tensors = [
            {"name": name, "datatype": kind, "shape": [len(rows)], "data": [row[name] for row in rows]}
            for name, kind in names.items()
        ]
        body = json.dumps({"inputs": tensors}).encode()
        request = urllib.request.Request(
            f"{url}/v2/models/missed/infer", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            asked += len(json.load(answer)["outputs"][0]["data"])
    return asked


def main(until: datetime) -> None:
    """Ask, if a model answers; deliver; export."""
    url = subprocess.run(["mlspec", "url"], capture_output=True, text=True, check=False).stdout.strip()
    if url:
        print(f"{ask(url, exported(), until):,} parcels asked for a prediction")
    rows = [row for day in days(OPENED, until) for row in parcels(day)]
    with EXPORT.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows):,} parcels delivered until {until:%Y-%m-%d}: {EXPORT}")


if __name__ == "__main__":
    main(datetime.fromisoformat(sys.argv[1]))
