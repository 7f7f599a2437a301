"""examples/ensemble: three models vote, and a sticky split compares two of them."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from sklearn.datasets import load_wine

from e2e.project import Project


def test_models_vote_and_a_customer_keeps_its_arm(tmp_path: Path) -> None:
    """A graph of several models is one process and one answer."""
    project = Project("ensemble", tmp_path / "wine")
    try:
        project.run("apply", "--yes")
        frame = load_wine(as_frame=True).frame.rename(columns=lambda name: name.replace("/", "_per_"))
        rows = frame.drop(columns="target").iloc[[0, 70, 150]].to_dict("records")
        votes = _ask(project.url("wine-vote"), rows, "anybody")
        assert [one["prediction"] for one in votes["predictions"]] == [0, 1, 2]
        once, twice = (_ask(project.url("wine-compare"), rows, "customer-7") for _ in range(2))
        assert once["predictions"] == twice["predictions"]
        project.edit("project.yaml", "weight: 90", "weight: 80")
        assert "add up to 90" in project.run("validate", code=1)
    finally:
        project.stop()


def _ask(url: str, rows: list[dict[str, Any]], customer: str) -> Any:
    headers = {"Content-Type": "application/json", "x-customer": customer}
    request = urllib.request.Request(f"{url}/predict", json.dumps({"rows": rows}).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
