"""Live objects as the API server answers them: what is ours in them, who else wrote, and whether two are alike.

Pure functions of JSON bodies with their `metadata.managedFields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlspec.manifest import OWN
from mlspec_reconciler.cluster import Object, key_of
from mlspec_reconciler.clusters.kube.parts import Parts

JSON = Mapping[str, Any]


def manager(project: str) -> str:
    """The field manager of every write: two projects that want the same object conflict, and none overruns the other."""
    return f"mlspec-{project}"


def object_of(body: JSON, parts: Parts, project: str) -> Object:
    """As the contract of a cluster has it. The marks of another project, whose objects without a namespace may have our
    names, are none to us."""
    metadata = body["metadata"]
    foreign = (metadata.get("labels") or {}).get(f"{OWN}project", project) != project
    marks = {} if foreign else metadata.get("annotations") or {}
    return Object(
        key_of(body),
        body,
        body.get("status") or {},
        metadata["uid"],
        metadata["resourceVersion"],
        {name: value for name, value in marks.items() if name.startswith(OWN)},
        deleting="deletionTimestamp" in metadata,
        parts=parts.of(body),
    )


def selector(project: str) -> str:
    """The label by which the objects of a project, and their pods, are listed."""
    return f"{OWN}project={project}"


def essence(body: JSON) -> JSON:
    """What a dry run is compared by: all but the bookkeeping of writes."""
    metadata = {
        name: value
        for name, value in body["metadata"].items()
        if name not in ("managedFields", "resourceVersion", "generation")
    }
    metadata["annotations"] = {
        name: value for name, value in (metadata.get("annotations") or {}).items() if not name.startswith(OWN)
    }
    return {**body, "metadata": metadata, "owners": _owners(body)}


def _owners(body: JSON) -> list[JSON]:
    return [
        {name: value for name, value in entry.items() if name != "time"}
        for entry in body["metadata"].get("managedFields") or ()
    ]


def _managers(body: JSON) -> set[str]:
    return {entry["manager"] for entry in body["metadata"].get("managedFields") or ()}


def made_by(manager: str, body: JSON) -> bool:
    """Whether an object that a create found was made by this field manager: by that create, in an attempt whose answer was
    lost, or by another apply of the same project.

    Its fields have been ours since it was made, and nobody else wrote more than bookkeeping within that second.
    """
    made, entries = body["metadata"]["creationTimestamp"], body["metadata"].get("managedFields") or ()
    ours = [one for one in entries if one["manager"] == manager and one["operation"] == "Apply"]
    others = [one for one in entries if one not in ours and not one.get("subresource")]
    return (
        bool(ours)
        and all(one["time"] <= made for one in ours)
        and not any(one["time"] <= made and set(one["fieldsV1"]) - {"f:metadata"} for one in others)
    )


def maker(body: JSON, ours: str) -> str:
    """Who made an object beside us (our field manager), as far as it says."""
    return ", ".join(sorted(_managers(body) - {ours})) or "somebody else"
