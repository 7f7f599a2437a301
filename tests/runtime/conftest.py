"""A storage root in tmp_path, code bundles in it, and the tasks that the reconciler would write."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlspec_runtime import dataset, frames, task, train

Document = dict[str, Any]

CANCER = """
    from sklearn.datasets import load_breast_cancer

    def rows():
        frame = load_breast_cancer(as_frame=True).frame
        frame.columns = [name.replace(" ", "_") for name in frame.columns]
        frame.insert(0, "patient", range(len(frame)))
        return frame
"""

LOGISTIC = """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def train(train, C=1.0):
        features = train.drop(columns=["label", "patient"])
        return make_pipeline(StandardScaler(), LogisticRegression(C=C)).fit(features, train["label"])
"""


class Storage:
    """What the reconciler keeps below the storage root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def bundle(self, **files: str) -> str:
        """Write `load="..."` as `load.py` into a code bundle; returns its path below the root."""
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:8]
        folder = self.root / "code" / digest
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(text))
        return f"code/{digest}"

    def dataset(
        self, spec: Document, code: str | None = None, files: list[Path] | None = None, **parameters: Any
    ) -> Document:
        """Materialise a dataset; `code` is the text of `load.py` with the function `rows`."""
        document: Document = {
            "subject": "dataset", "step": "dataset", "name": "d-1", "dataset": "d", "spec": spec, "parameters": parameters,
            "code": {"path": self.bundle(load=code), "entry": "load.py:rows"} if code else None,
            "files": [str(path) for path in files] if files else None,
        }  # fmt: skip
        return dataset.run(document, self.root)

    def rows(self, text: str, spec: Document | None = None) -> Document:
        """Materialise what `def rows()` with this body returns."""
        return self.dataset(
            {"source": {"function": "load.py:rows"}, **(spec or {})}, f"def rows():\n    {text}\n"
        )

    def frames(self, run: str, data: Document, taken: Document, spec: Document | None = None) -> Document:
        """Build the frames of a run from one dataset."""
        source = {"source": {"function": "load.py:rows"}, **(spec or {})}
        entries = {
            name: {
                "use": use,
                "dataset": {"path": taken["path"], "spec": source},
                "view": None,
                "as_of": None,
            }
            for name, use in data.items()
        }
        document = {"subject": "frames", "step": "frames", "name": run, "spec": job(data), "data": entries}
        assert task.perform(frames.run, document, self.root) == 0, self.error(run, "frames")
        return self.result(run, "frames")

    def training(self, run: str, code: str, data: Document, **changes: Any) -> Document:
        """The task of a training step."""
        return {
            "subject": "train", "step": "train", "name": run, "job": "j", "spec": job(data),
            "code": {"path": self.bundle(train=code), "entry": "train.py:train"}, "parameters": {}, "seed": 0,
            "gates": [], "baseline": None, "tracking": None, "experiment": "j", "tags": {}, **changes,
        }  # fmt: skip

    def train(self, document: Document) -> Document:
        """Run a training step as its process would."""
        assert task.perform(train.run, document, self.root) == 0, self.error(document["name"], "train")
        return self.result(document["name"], "train")

    def result(self, run: str, step: str) -> Document:
        return json.loads((self.root / "runs" / run / step / "result.json").read_text())  # type: ignore[no-any-return]

    def error(self, run: str, step: str) -> str:
        return (self.root / "runs" / run / step / "error.json").read_text()


def job(data: Document) -> Document:
    return {"function": "train.py:train", "data": data}


SPLIT: Document = {
    "train": {"dataset": "d", "label": "target = 1", "share": [0, 0.7]},
    "test": {"dataset": "d", "label": "target = 1", "share": [0.7, 1]},
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root")


@pytest.fixture
def cancer(storage: Storage) -> Callable[[str], None]:
    """Builds the frames of a run on scikit-learn's breast cancer data: `label` is benign, 569 rows, 70:30."""
    spec = {"key": ["patient"]}
    taken = storage.dataset({"source": {"function": "load.py:rows"}, **spec}, CANCER)

    def build(run: str) -> None:
        storage.frames(run, SPLIT, taken, spec)

    return build


@pytest.fixture
def split() -> Document:
    return SPLIT


@pytest.fixture
def logistic() -> str:
    return LOGISTIC
