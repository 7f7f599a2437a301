"""Plays Argo's controller on a real API server: Workflows end as if their pods had run, with a result for each step.

For tests of the chain behind the runs (models, services, monitors) that are not about running pods.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.bed.api import Api, ApiError, Document

WORKFLOW = ("argoproj.io/v1alpha1", "Workflow")
TOOK = {"started": 0.0, "finished": 3.8}


def end_runs(api: Api, namespace: str) -> list[str]:
    """End every Workflow that has not ended; their names."""
    open_ = [one for one in api.list(*WORKFLOW, namespace) if not (one.get("status") or {}).get("phase")]
    return [one["metadata"]["name"] for one in open_ if _end(api, namespace, one)]


@contextmanager
def ending_runs(api: Api, namespace: str, every: float = 0.1) -> Iterator[None]:
    """End Workflows as they come."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every):
            end_runs(api, namespace)

    thread = threading.Thread(target=run, name="argo")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _end(api: Api, namespace: str, workflow: Document) -> bool:
    name = workflow["metadata"]["name"]
    nodes = {
        f"{name}-{step['name']}": {
            "id": f"{name}-{step['name']}",
            "name": f"{name}.{step['name']}",
            "displayName": step["name"],
            "type": "Pod",
            "templateName": step["name"],
            "phase": "Succeeded",
            "outputs": {"parameters": [{"name": "result", "value": json.dumps(result(step, name))}]},
        }
        for step in workflow["spec"]["templates"]
        if "container" in step
    }
    status = {"phase": "Succeeded", "progress": f"{len(nodes)}/{len(nodes)}", "nodes": nodes}
    path = f"/apis/{WORKFLOW[0]}/namespaces/{namespace}/workflows/{name}"
    try:
        api.request(
            "PATCH",
            path,
            {"metadata": {"uid": workflow["metadata"]["uid"]}, "status": status},
            content_type="application/merge-patch+json",
            fieldManager="workflow-controller",
        )
    except ApiError as error:
        if error.status not in (404, 409):  # deleted meanwhile
            raise
        return False
    return True


def result(step: Mapping[str, Any], run: str) -> dict[str, Any]:
    """What the runtime would commit for a step."""
    match step["container"]["args"][0]:
        case "dataset":
            path = f"datasets/{run}"
            return TOOK | {"snapshot": run, "path": path, "rows": 1000, "newest": "2013-06-01T00:00:00Z"}
        case "features":
            return TOOK | {"path": f"features/{run}", "rows": 26115, "keys": 16}
        case "train":
            return TOOK | {"metrics": {"auc": 0.75}, "inputs": [], "baseline": None}
        case _:
            return dict(TOOK)
