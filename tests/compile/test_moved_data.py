"""A retraining reads newer data: what the run is told must be the moved dates, not those of the spec."""

from __future__ import annotations

from mlspec.ranges import DataUse, empty, shifted

WINTER = {
    "train": DataUse.model_validate({"view": "departure", "from": "2013-01-01", "to": "2013-03-25"}),
    "test": DataUse.model_validate({"view": "departure", "from": "2013-03-25", "to": "2013-04-01"}),
}


def dates(window: str | None) -> dict[str, tuple[str, str]]:
    before = {name: use.document() for name, use in WINTER.items()}
    documents = {
        name: use.document() for name, use in shifted(WINTER, "2013-06-01T00:00:00+00:00", window).items()
    }
    assert {name: use.document() for name, use in WINTER.items()} == before, "the spec stays as it is"
    return {name: (one["from"][:10], one["to"][:10]) for name, one in documents.items()}


def test_without_a_window_the_data_keeps_its_length() -> None:
    """Everything moves by the same time."""
    assert dates(None) == {"train": ("2013-03-03", "2013-05-25"), "test": ("2013-05-25", "2013-06-01")}


def test_a_window_sets_how_far_back_the_oldest_data_lies() -> None:
    """The test data keeps its length, the training data gets the rest."""
    assert dates("60d") == {"train": ("2013-04-02", "2013-05-25"), "test": ("2013-05-25", "2013-06-01")}


def test_a_window_that_leaves_no_time_is_found_before_anything_runs() -> None:
    """The test data needs a week: nothing would be left to train on, and the run would fail after its turn in the queue."""
    moved = {window: shifted(WINTER, "2013-06-01T00:00:00+00:00", window) for window in ("7d", "8d")}
    assert {window: empty(uses) for window, uses in moved.items()} == {"7d": ["train"], "8d": []}
