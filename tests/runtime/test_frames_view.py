"""Frames of a FeatureView, from a dataset and a materialised set, as a training run builds them."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import pytest

from mlspec_runtime import frames, train
from mlspec_runtime.features import materialise
from mlspec_runtime.task import TaskError

BODY = (
    "import datetime as d; n = 400; t = d.datetime(2013, 1, 1, tzinfo=d.UTC); return {'id': list(range(n)),"
    " 'carrier': ['AA' if i % 2 else 'UA' for i in range(n)], 'delay': [float(i) if i % 10 else None for i in range(n)],"
    " 'at': [t + d.timedelta(hours=i) for i in range(n)], 'known': [t + d.timedelta(hours=i, minutes=90) for i in range(n)]}"
)
SPEC = {"source": {"function": "load.py:rows"}, "key": ["id"], "time": {"event": "at", "known": "known"}}
SET = {"dataset": "d", "key": ["carrier"], "features": {"delay_1d": {"mean": "delay", "window": "1d"}}}
VIEW = {
    "ask": {"dataset": "d"},
    "label": "delay > 200",
    "features": [{"set": "carrier-delay"}, {"row": {"hour": "extract(hour FROM at)"}}],
}


@pytest.fixture
def entry(storage: Any) -> Any:
    taken = storage.rows(BODY, SPEC)
    data = {"path": taken["path"], "spec": SPEC}
    version = {"set": "carrier-delay", "version": "v1", "spec": SET, "dataset": data}
    made = materialise.run(version, storage.root)

    def entry(as_of: str | None = None, **use: Any) -> dict[str, Any]:
        sets = {"carrier-delay": {"spec": SET, "path": made["path"]}}
        view = {"spec": VIEW, "sets": sets}
        return {"use": {"view": "v", **use}, "dataset": data, "view": view, "as_of": as_of}

    return entry


def test_a_view_becomes_features_and_label_and_the_function_gets_only_these(storage: Any, entry: Any) -> None:
    """Moment and key of a question stay in the file for later questions, but are no features."""
    data = {"train": entry(**{"from": "2013-01-03", "to": "2013-01-04"})}
    spec = {"function": "train.py:train", "data": {"train": data["train"]["use"]}}
    document = {"name": "r-1", "step": "frames", "spec": spec, "data": data}
    result = frames.run(document, storage.root)["frames"]["train"]
    assert [feature["name"] for feature in result["features"]] == ["delay_1d", "hour"]
    table = pq.read_table(storage.root / "runs/r-1/frames/train.parquet")
    assert table["__key_id"].to_pylist() == [
        i for i in range(48, 72) if i % 10
    ]  # without a delay there is no label
    landed = [
        i for i in range(24, 48) if i % 2 == 0 and i % 10
    ]  # UA before hour 48, each known 90 minutes later
    assert table["delay_1d"].to_pylist()[0] == sum(landed) / len(landed)
    frame = train.read(storage.root / "runs/r-1/frames", ["train"])["train"]
    assert list(frame.columns) == ["delay_1d", "hour", "label"]
    assert frame["label"].dtype == bool


def test_shares_of_a_view_are_those_of_its_dataset(storage: Any, entry: Any) -> None:
    """A split holds whichever way the rows are used."""
    through_view = frames.build("a", entry(share=[0, 0.5]), storage.root).table
    plain = {**entry(), "view": None, "use": {"dataset": "d", "label": "delay > 200", "share": [0, 0.5]}}
    assert (
        through_view["__key_id"].to_pylist() == frames.build("b", plain, storage.root).table["id"].to_pylist()
    )


def test_as_of_hides_what_was_not_known(storage: Any, entry: Any) -> None:
    """A label from the future of the training is a leak; both kinds of data honour it."""
    moment = "2013-01-02T00:00:00Z"
    view = frames.build("a", entry(moment), storage.root).table
    plain = frames.build("b", {**entry(moment), "view": None, "use": {"dataset": "d"}}, storage.root).table
    assert max(view["__key_id"].to_pylist()) == 22
    assert max(plain["id"].to_pylist()) == 22


def test_an_empty_range_of_a_view_says_what_the_data_has(storage: Any, entry: Any) -> None:
    """The same sentence as for a dataset."""
    with pytest.raises(TaskError) as caught:
        frames.build("train", entry(**{"from": "2031-01-01"}), storage.root)
    assert caught.value.message == "data train has no row from 2031-01-01 to the end"
    assert "400 rows from 2013-01-01T00:00:00+00:00" in caught.value.hint
