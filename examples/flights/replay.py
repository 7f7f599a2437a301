"""Replay real flights through the serving endpoint, in the order in which passengers would have asked."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pandas as pd

BATCH = 25
"""Questions in one request: as many as a busy gate agent's screen would ask at once."""


@dataclass
class Tally:
    """What came back: every request is counted, and each flight keeps its answer."""

    requests: int = 0
    failed: int = 0
    runs: list[str] = field(default_factory=list)
    scores: list[pd.DataFrame] = field(default_factory=list)

    def auc(self, since: str, until: str) -> float:
        """Area under the ROC curve of the flights that left in [since, until) and landed."""
        from sklearn.metrics import roc_auc_score

        frame = pd.concat(self.scores)
        inside = frame["scheduled_departure"].between(
            pd.Timestamp(since, tz="UTC"), pd.Timestamp(until, tz="UTC")
        )
        landed = frame[inside].dropna(subset=["arr_delay"])
        return float(roc_auc_score(landed["arr_delay"] > 15, landed["score"]))


class Passengers:
    """Asks one endpoint over one kept-alive connection."""

    def __init__(self, url: str, model: str, flights: pd.DataFrame, share: float) -> None:
        self.address = url.removeprefix("http://")
        self.model = model
        hashed = pd.util.hash_pandas_object(flights["flight"], index=False).to_numpy() / 2.0**64
        self.flights = flights[hashed < share].sort_values("scheduled_departure")
        self.connection = http.client.HTTPConnection(self.address, timeout=30)
        self.tally = Tally()
        self.asked = datetime(2013, 1, 1, tzinfo=UTC)
        """Moment of the newest question: two hours before the departure."""

    def ask(self, since: str, until: str) -> Iterator[pd.Timestamp]:
        """Ask about every flight that leaves in [since, until); yields the moment reached after each request."""
        inside = self.flights["scheduled_departure"].between(
            pd.Timestamp(since, tz="UTC"), pd.Timestamp(until, tz="UTC"), inclusive="left"
        )
        rows = self.flights[inside]
        for start in range(0, len(rows), BATCH):
            batch = rows.iloc[start : start + BATCH]
            self._request(batch)
            self.asked = (batch["scheduled_departure"].iloc[-1] - pd.Timedelta(hours=2)).to_pydatetime()
            yield batch["scheduled_departure"].iloc[-1]

    def _request(self, batch: pd.DataFrame) -> None:
        columns = ("flight", "carrier", "origin", "tailnum", "distance", "scheduled_departure")
        inputs = [_tensor(name, batch[name]) for name in columns]
        self.tally.requests += 1
        body = json.dumps({"inputs": inputs})
        self.connection.request(
            "POST", f"/v2/models/{self.model}/infer", body, {"Content-Type": "application/json"}
        )
        answer = self.connection.getresponse()
        document = json.loads(answer.read())
        if answer.status != 200:
            self.tally.failed += 1
            return
        outputs = {one["name"]: one["data"] for one in document["outputs"]}
        run = document.get("model_version", "")
        if run and run not in self.tally.runs:
            self.tally.runs.append(run)
        frame = batch[["scheduled_departure", "arr_delay"]].assign(
            score=np.asarray(outputs["probability"], dtype=float)
        )
        self.tally.scores.append(frame)


def _tensor(name: str, values: pd.Series) -> dict[str, object]:
    if pd.api.types.is_float_dtype(values):
        return {"name": name, "datatype": "FP64", "shape": [len(values)], "data": values.tolist()}
    if pd.api.types.is_datetime64_any_dtype(values):
        text = values.dt.strftime("%Y-%m-%dT%H:%M:%SZ").tolist()
        return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": text}
    data = values.fillna("").astype(str).tolist()  # a plane that is not known yet matches no features
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": data}
