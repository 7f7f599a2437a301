"""The first project of a newcomer: orders of a shop, a model that a policy retrains. What is trained stays what git says.

Seen before: after one retraining that a policy asked for, every later commit trained on the moved dates, also when the gates
had refused that retraining.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlspec_reconciler.clusters.memory import MemoryCluster
from plan.playing import CLOCK, Script, settle, wanted

SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: orders}
spec:
  source: {function: "load.py:orders"}
  key: [order]
  time: {event: ordered, delay: 0s, timezone: America/New_York}
---
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: outcomes}
spec:
  source: {function: "load.py:outcomes"}
  key: [order]
  time: {event: ordered, known: judged, timezone: America/New_York}
---
apiVersion: mlspec.dev/v1alpha1
kind: FeatureSet
metadata: {name: customer}
spec:
  dataset: orders
  key: [customer]
  features:
    orders_30d: {count: "*", window: 30d}
    spent_90d: {sum: amount, window: 90d}
---
apiVersion: mlspec.dev/v1alpha1
kind: FeatureView
metadata: {name: after-order}
spec:
  ask: {dataset: outcomes}
  label: again
  features:
    - {set: customer}
    - row: {cds: cds, amount: amount, month: "month(ordered)"}
---
apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {name: again}
spec:
  function: {code: "train.py:train", requirements: [lightgbm, pandas]}
  data:
    train: {view: after-order, from: "1997-01-01", to: "1997-08-01"}
    test: {view: after-order, from: "1997-08-01", to: "1997-10-01"}
  parameters: {trees: 100, leaves: 31}
  gates:
    - {metric: auc, min: 0.6}
    - {metric: auc, against: serving, tolerance: 0.01}
---
apiVersion: mlspec.dev/v1alpha1
kind: ServingGraph
metadata: {name: again}
spec:
  steps:
    features: {view: after-order}
    model: {model: again, after: [features]}
---
apiVersion: mlspec.dev/v1alpha1
kind: MonitoringPolicy
metadata: {name: again}
spec:
  graph: again
  window: 14d
  truth: {dataset: outcomes, key: [order], label: again, maxDelay: 61d}
  alerts:
    accuracy: {metric: auc, below: 0.95}
  actions:
    - {when: accuracy, retrain: {job: again, window: 180d}, limit: {count: 1, per: 60d}}
"""
CODE = {
    "load.py": "def orders():\n    return []\n\n\ndef outcomes():\n    return []\n",
    "train.py": "def train(train, trees, leaves, seed=0):\n    return None\n",
}
GOOD, BAD = Script(), Script(metrics={"train again": {"auc": 0.4}})


class Shop:
    """The project, applied on a memory cluster."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cluster = MemoryCluster()
        self.text = SPECS
        for name, text in CODE.items():
            (root / name).write_text(text)

    def commit(self, *edits: tuple[str, str], script: Script = GOOD) -> list[str]:
        """Edit the specs and apply; the ranges of the runs that this trains."""
        for old, new in edits:
            assert old in self.text
            self.text = self.text.replace(old, new)
        (self.root / "shop.yaml").write_text(self.text)
        return self.applied(script)

    def applied(self, script: Script = GOOD) -> list[str]:
        """Apply; the ranges of the runs that this trains, all entries of data together."""
        before = set(self.cluster.runs())
        settle(wanted(self.root), self.cluster, script)
        return [_range(body) for name, body in self._trainings().items() if name not in before]

    def alert(self, at: str, script: Script) -> list[str]:
        """The policy asks for a retraining, and what the controller trains for it."""
        live = {one.key.name: one for one in self.cluster.list()}
        schedule = live["again-monitor"]
        made_for = schedule.body["spec"]["step"]["document"]["made_for"]["again"]
        asked = list((schedule.status.get("lastResult") or {}).get("triggers", []))
        request = {"id": f"accuracy {at}", "action": "retrain", "job": "again", "at": at, "window": "180d"}
        asked.append(request | {"made_for": made_for, "made": next(CLOCK), "reason": "auc 0.80 < 0.95"})
        result = {"summary": "an alert", "triggers": asked}
        self.cluster.settle(schedule.key, {"phase": "ready", "lastResult": result})
        before = set(self.cluster.runs())
        settle(wanted(self.root), self.cluster, script, retry=False)
        return [_range(body) for name, body in self._trainings().items() if name not in before]

    def _trainings(self) -> dict[str, Mapping[str, Any]]:
        found = sorted(self.cluster.list(), key=lambda one: int(one.version))
        return {
            one.key.name: one.body for one in found if one.body["spec"].get("title", "").startswith("train")
        }


def _range(run: Mapping[str, Any]) -> str:
    uses = [one["use"] for one in run["spec"]["steps"][0]["document"]["data"].values()]
    return f"{min(one['from'] for one in uses)[:10]} to {max(one['to'] for one in uses)[:10]}"


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Trained as git says."""
    made = Shop(tmp_path)
    assert made.commit() == [GIT]
    return made


GIT = "1997-01-01 to 1997-10-01"
MOVED = "1997-08-05 to 1998-02-01"
ALERT = "1998-02-01T00:00:00+00:00"


def test_after_an_accepted_retraining_git_decides_again(shop: Shop) -> None:
    """The request was made for what git said then."""
    assert shop.alert(ALERT, GOOD) == [MOVED]
    assert shop.commit(("trees: 100", "trees: 200")) == [GIT]


def test_after_a_refused_retraining_git_decides_again(shop: Shop) -> None:
    """A candidate that its gates refused is spent."""
    assert shop.alert(ALERT, BAD) == [MOVED]
    assert shop.commit(("trees: 100", "trees: 200")) == [GIT]


def test_a_refused_retraining_is_not_tried_again_by_every_apply(shop: Shop) -> None:
    """The policy reports its request with each evaluation."""
    assert shop.alert(ALERT, BAD) == [MOVED]
    assert shop.applied() == []
    assert shop.applied() == []


def test_new_dates_in_git_are_trained(shop: Shop) -> None:
    """Whoever moves the dates in a commit gets just these."""
    shop.alert(ALERT, GOOD)
    assert shop.commit(('to: "1997-10-01"', 'to: "1997-11-01"')) == ["1997-01-01 to 1997-11-01"]


def test_a_revert_trains_nothing(shop: Shop) -> None:
    """Not even when a request moved the data in between."""
    shop.commit(("trees: 100", "trees: 200"))
    shop.alert(ALERT, GOOD)
    assert shop.commit(("trees: 200", "trees: 100")) == []


def test_a_comment_ends_no_request(shop: Shop) -> None:
    """What git says about the run is the same: the retrained model goes on."""
    shop.alert(ALERT, GOOD)
    assert shop.commit(("  parameters: {trees", "  # as the shop wants it\n  parameters: {trees")) == []


def test_gates_end_no_request(shop: Shop) -> None:
    """A new gate judges, it does not train."""
    shop.alert(ALERT, GOOD)
    assert shop.commit(("min: 0.6}", "min: 0.65}")) == []


def test_a_second_alert_is_trained_after_a_refusal(shop: Shop) -> None:
    """A new alert is a new request, with the data of its own moment."""
    shop.alert(ALERT, BAD)
    assert shop.alert("1998-04-02T00:00:00+00:00", GOOD) == ["1997-10-04 to 1998-04-02"]
