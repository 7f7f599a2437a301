"""A request log, a reference and a ground truth as the other parts of the runtime write them, from random numbers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlspec_runtime.monitor import reference

DAY = 86_400
BEGIN = int(datetime(2013, 6, 10, tzinfo=UTC).timestamp())
"""First second of the logged time."""
WALL = 1_800_000_000.0
"""The wall clock of the tests when the log begins: far from the logged time, as in a replay."""


class World:
    """One storage root with the model `flights-1`, its reference of three features, a log and outcomes."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root = root
        self.rng = np.random.default_rng(seed)
        self.truth: list[tuple[int, bool, int]] = []
        self.files = 0
        self.serial = 0
        (root / "logs/flights").mkdir(parents=True)
        (root / "datasets/flights/s1").mkdir(parents=True)
        self.train("flights-1")

    def train(self, run: str) -> None:
        """Freeze a reference for a run."""
        data, probability = self._draw(20_000)
        document = reference.build(
            pa.table(data),
            {"prediction": probability > 0.5, "probability": probability},
            self.rng.random(20_000) < probability,
            {"auc": 0.83},
        )
        path = self.root / f"runs/{run}/train/reference.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(document))

    def _draw(self, rows: int) -> tuple[dict[str, Any], np.ndarray]:
        data = {
            "wind": self.rng.normal(10, 3, rows),
            "hour": self.rng.integers(5, 23, rows),
            "carrier": self.rng.choice(["AA", "UA", "DL", "B6"], rows, p=[0.4, 0.3, 0.2, 0.1]),
        }
        return data, self.rng.beta(0.6, 0.6, rows)

    def day(
        self,
        day: float,
        rows: int = 300,
        *,
        model: str = "flights-1",
        skill: float = 1.0,
        shift: float = 0.0,
        delay: float = 3600.0,
        span: float = DAY,
        change: dict[str, Any] | None = None,
        received: float | None = None,
        status: int = 200,
        known: float = 1.0,
    ) -> str:
        """Log the requests of one day (or `span` seconds from `day` on) in one file.

        `skill` 1: outcomes follow the probability, 0: they are a coin. `delay`: seconds until an outcome is known;
        `known`: share of the outcomes that ever are. `received`: wall clock of the last row.
        """
        data, probability = self._draw(rows)
        data["wind"] = data["wind"] + 3 * shift
        data |= change or {}
        seconds = BEGIN + day * DAY + np.sort(self.rng.random(rows)) * span
        at = (seconds * 1e6).astype(np.int64)
        wall = WALL + (seconds - BEGIN) / DAY if received is None else np.full(rows, received)
        outcome = self.rng.random(rows) < np.where(self.rng.random(rows) < skill, probability, 0.5)
        keys = np.arange(self.serial, self.serial + rows)
        self.serial += rows
        for key, moment, late in zip(keys, at, outcome, strict=True):
            if self.rng.random() < known:
                self.truth.append((int(key), bool(late), int(moment + delay * 1e6)))
        table = pa.table(
            {
                "id": pa.array([str(key) for key in keys]),
                "at": pa.array(at, pa.timestamp("us", "UTC")),
                "received": pa.array((wall * 1e6).astype(np.int64), pa.timestamp("us", "UTC")),
                "model": pa.array([model] * rows),
                "status": pa.array([status] * rows, pa.int32()),
                "input.flight": pa.array(keys),
                **{f"feature.{name}": pa.array(values) for name, values in data.items()},
                "prediction": pa.array(probability > 0.5),
                "probability": pa.array(probability),
            }
        )
        self.files += 1
        name = f"{self.files:06}.parquet"
        pq.write_table(table, self.root / "logs/flights" / name)
        self.publish()
        return name

    def publish(self, snapshot: str = "s1") -> None:
        """Write all outcomes; the monitor must honour `known` itself."""
        keys, late, known = zip(*self.truth, strict=True) if self.truth else ((), (), ())
        table = pa.table(
            {
                "flight": pa.array(keys, pa.int64()),
                "arr_delay": pa.array([30.0 if one else 0.0 for one in late]),
                "arrival": pa.array(known, pa.timestamp("us", "UTC")),
            }
        )
        path = self.root / f"datasets/flights/{snapshot}/data.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)

    def task(self, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The task document as `kinds/monitoring_policy.py` writes it."""
        return {
            "subject": "monitor",
            "step": "monitor",
            "name": "watch-monitor",
            "policy": "watch",
            "spec": {"graph": "flights", **spec},
            "graph": "flights",
            "log": "logs/flights",
            "references": {"flights-1": "runs/flights-1/train/reference.json"},
            "runs": {"flights-1": "late-arrival", "flights-2": "late-arrival", "flights-3": "late-arrival"},
            "made_for": {"late-arrival": "s0"},
            "truth": {
                "path": "datasets/flights/s1",
                "spec": {
                    "source": {"parquet": "x.parquet"},
                    "key": ["flight"],
                    "time": {"event": "arrival", "known": "arrival"},
                },
            },
            "receivers": {},
            **more,
        }


TRUTH = {"dataset": "flights", "key": ["flight"], "label": "arr_delay > 15", "maxDelay": "2d"}


def wall(day: float) -> float:
    """The wall clock when the replay has come to `day`: the tests replay one day per second."""
    return WALL + day
