"""A graph with a view: requests bring keys and moments, the features come from the store, and the log keeps both."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlspec_runtime.features import materialise
from serve import serving as s

DATASET = {
    "source": {"parquet": "flights.parquet"}, "key": ["flight"], "time": {"event": "scheduled", "known": "arrival"},
    "columns": {
        "flight": {"type": "int64"}, "carrier": {"type": "string"}, "scheduled": {"type": "timestamp"},
        "delay": {"type": "double", "nullable": True},
    },
}  # fmt: skip
SET = {"dataset": "flights", "key": ["carrier"], "features": {"a": {"mean": "delay", "window": "3h"}}}
VIEW = {
    "ask": {"dataset": "flights", "at": "scheduled - INTERVAL 2 HOUR"}, "label": "delay > 15",
    "features": [{"set": "carriers"}, {"row": {"b": "extract(hour FROM scheduled)"}}],
}  # fmt: skip
NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """Three flights of AA were known before ten; the model takes the mean delay `a` and the hour `b`."""
    rows = [
        {"flight": number, "carrier": "AA", "scheduled": NOON - timedelta(hours=4), "arrival": NOON - timedelta(hours=hours), "delay": delay}
        for number, (hours, delay) in enumerate([(3, 10.0), (3, 20.0), (2, 1000.0), (1, 2000.0)])
    ]  # fmt: skip
    folder = tmp_path / "datasets" / "flights" / "1"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    source = {"path": "datasets/flights/1", "spec": DATASET}
    made = materialise.run({"set": "carriers", "version": "1", "spec": SET, "dataset": source}, tmp_path)
    s.classifier(tmp_path / "m")
    return s.task(
        {"features": {"view": "departure"}, "model": {"model": "m", "after": ["features"]}},
        models={"m": {"run": "m-1", "path": "m"}},
        views={
            "departure": {
                "spec": VIEW,
                "dataset": DATASET,
                "sets": {"carriers": {"spec": SET, "path": made["path"]}},
            }
        },
    )


def test_features_are_those_of_the_moment_of_the_question(tmp_path: Path, document: dict[str, Any]) -> None:
    """The whole path: V2 and rows give the same; the log has inputs, features and the moment, for monitoring."""
    row = {"flight": 7, "carrier": "AA", "scheduled": NOON.isoformat()}
    with s.serving(tmp_path, document) as server:
        metadata = server.request("GET", "/v2/models/g").json
        optional = {
            one["name"]: one.get("parameters", {}).get("optional", False) for one in metadata["inputs"]
        }
        by_rows = server.request("POST", "/predict", {"rows": [row], "id": "rows"})
        tensors = [
            {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["AA"]},
            {"name": "scheduled", "datatype": "BYTES", "shape": [1], "data": [NOON.isoformat()]},
        ]
        by_tensors = server.infer({"id": "tensors", "inputs": tensors})
        wrong = server.request("POST", "/predict", {**row, "scheduled": "noon"})
        unknown = server.request("POST", "/predict", {"rows": [{**row, "carrier": "ZZ"}], "id": "unknown"})
        assert server.stop() == 0
        found = {entry["id"]: entry for entry in server.log()}
    assert optional == {"carrier": False, "scheduled": False, "flight": True, "delay": True, "arrival": True}
    assert by_rows.status == 200, by_rows.body
    assert by_tensors.column("probability") == [by_rows.json["predictions"][0]["probability"]]
    assert (wrong.status, "scheduled must be a time" in wrong.json["error"]) == (400, True)
    entry = found["rows"]
    assert (entry["feature.a"], entry["feature.b"]) == (15.0, 12.0), (
        "arrivals at ten and later were not known"
    )
    assert entry["at"] == NOON - timedelta(hours=2)
    assert (entry["input.flight"], entry["input.carrier"]) == (7, "AA")
    assert (unknown.status, "refuses its input" in unknown.json["error"]) == (500, True), (
        "no delays are known of ZZ"
    )
    assert found["unknown"]["feature.a"] is None
