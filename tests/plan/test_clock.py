"""What comes due becomes one durable trigger: datasets are read again, jobs train again, and nothing happens twice."""

from __future__ import annotations

from datetime import UTC, datetime

from mlspec import project
from mlspec_reconciler import clock, observe
from mlspec_reconciler.clusters.memory import MemoryCluster

SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: prices}
spec:
  source: {parquet: prices.parquet}
  refresh: {every: 1h}
---
apiVersion: mlspec.dev/v1alpha1
kind: TrainingJob
metadata: {name: forecast}
spec:
  function: "train.py:train"
  data:
    train: {dataset: prices, label: price}
    test: {dataset: prices, label: price}
  schedule: {cron: "0 6 * * *", window: 30d}
"""
NIGHT = datetime(2026, 11, 24, 5, 30, tzinfo=UTC).timestamp()


def due(cluster: MemoryCluster, now: float) -> list[tuple[str, str, str]]:
    built = project.build({"prices.yaml": SPECS}, "prices")
    assert built.project is not None, built.diagnostics
    clock.tick(built.project, cluster, now)
    found = observe.facts(cluster, cluster.list(), built.project.settings.targets["local"], {}, {}).triggers
    return [(one.action, one.subject, one.at[11:16]) for one in found]


def test_a_new_resource_starts_to_count_when_it_is_applied() -> None:
    """The first reading and training are those that the specs ask for, not last night's."""
    assert due(MemoryCluster(), NIGHT) == []


def test_missed_moments_collapse_into_the_newest() -> None:
    """A laptop that slept for three hours reads once."""
    cluster = MemoryCluster()
    due(cluster, NIGHT)
    assert due(cluster, NIGHT + 3.2 * 3600) == [
        ("retrain", "forecast", "06:00"),
        ("refresh", "prices", "08:30"),
    ]


def test_the_same_moment_twice_is_one_trigger() -> None:
    """Two reconcilers, or one that crashed in between, ask for the same run."""
    cluster = MemoryCluster()
    due(cluster, NIGHT)
    first = due(cluster, NIGHT + 3600)
    cluster.set_note(clock.NOTE, {"Dataset/prices": NIGHT, "TrainingJob/forecast": NIGHT})
    assert due(cluster, NIGHT + 3600) == first
    assert len(first) == 2
