"""Writes of one project: server-side apply by one field manager, creates of runs, and the server's refusals in words.

Nothing is taken from another manager unless the project says so, field by field (`fields` of its target).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NoReturn

from mlspec.compile import readings
from mlspec.kinds.project import FieldRule, KubernetesTarget
from mlspec.manifest import OWN, Key
from mlspec_reconciler.cluster import Conflict, Immutable, Refused, Unavailable, key_of
from mlspec_reconciler.clusters.kube import errors, fieldpaths
from mlspec_reconciler.clusters.kube.bodies import manager
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import APPLY_TYPE, PATCH_TYPE, Answer, Transport

JSON = Mapping[str, Any]
IMMUTABLE = re.compile("immutable|may not change|cannot change|updates to .* are forbidden")
"""How the server says that a field cannot be changed in place; there is no reason for it in the API."""
SIZES = {"Deployment": "spec.replicas"}
"""Kind -> field that an autoscaler takes over where we have set it before."""


class Writer:
    """Writes bodies of one project into its namespace."""

    def __init__(
        self, transport: Transport, discovery: Discovery, target: KubernetesTarget, project: str
    ) -> None:
        self._transport = transport
        self._discovery = discovery
        self._namespace = target.namespace
        self._fields = target.fields
        self._project = project
        self._manager = manager(project)

    def complete(self, body: JSON, annotations: Mapping[str, str]) -> dict[str, Any]:
        """The body with our notes and marks."""
        wanted = self.wanted(body)
        metadata = dict(wanted["metadata"])
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **annotations}
        return {**wanted, "metadata": metadata}

    def wanted(self, body: JSON) -> JSON:
        """The body without the fields that the project leaves to others."""
        key = key_of(body)
        metadata = dict(body["metadata"])
        metadata["labels"] = {**(metadata.get("labels") or {}), OWN + "project": self._project}
        wanted: JSON = {**body, "metadata": metadata}
        for field in self._left(key):
            wanted = fieldpaths.without(wanted, field)
        return wanted

    def let_go(self, body: JSON, live: JSON, version: str) -> str:
        """Stop to own what others decide about from now on, and leave its value: an apply without it would take the value
        away, and a Deployment of ten replicas would be one of one until its autoscaler looks. Returns the new version.

        https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership
        """
        key = key_of(body)
        steps = [
            {"op": "remove", "path": f"/metadata/managedFields/{number}/fieldsV1{fieldpaths.pointer(place)}"}
            for number, place in self._lost(body, live)
        ]
        if not steps:
            return version
        same = {"op": "replace", "path": "/metadata/resourceVersion", "value": version}
        try:
            answer = self._transport.request(
                "PATCH",
                self._discovery.path(key.api_version, key.kind, key.namespace, key.name),
                query={"fieldManager": self._manager},
                body=[same, *steps],
                content_type=PATCH_TYPE,
            )
        except (errors.ConflictError, errors.NotFound) as error:
            raise Conflict(f"{key} has changed: {error}") from error
        except errors.ApiError as error:
            refuse(key, error)
        return str(answer.body["metadata"]["resourceVersion"])

    def after_let_go(self, body: JSON, live: JSON) -> JSON:
        """The live object as it will be then."""
        if not (lost := self._lost(body, live)):
            return live
        live = deepcopy(dict(live))
        for number, place in lost:
            fields = live["metadata"]["managedFields"][number]["fieldsV1"]
            for step in place[:-1]:
                fields = fields[step]
            del fields[place[-1]]
        return live

    def _lost(self, body: JSON, live: JSON) -> list[tuple[int, list[str]]]:
        """Number of our entry in managedFields, and the place in its FieldsV1, of all that we own and others decide about."""
        size = SIZES.get(body["kind"])
        fields = self._left(key_of(body))
        if size is not None and size not in fields and fieldpaths.without(body, size) == body:
            fields.append(size)
        entries = enumerate(live["metadata"].get("managedFields") or ())
        return [
            (number, place)
            for number, entry in entries
            if entry["manager"] == self._manager and entry["operation"] == "Apply"
            for field in fields
            if (place := fieldpaths.owned(entry["fieldsV1"], field)) is not None
        ]

    def _left(self, key: Key) -> list[str]:
        return [rule.field for rule in self._fields if rule.owner == "other" and _meets(rule, key)]

    def post(self, key: Key, body: JSON, **query: str) -> Answer:
        """Create a run. It is not repeated when it is not known what became of it. Raises `errors.ApiError`."""
        query |= {"fieldManager": self._manager, "fieldValidation": "Strict"}
        return self._transport.request(
            "POST",
            self._discovery.path(key.api_version, key.kind, self._namespace),
            query=query,
            body=body,
            retry=False,
        )

    def apply(self, key: Key, body: JSON, *, dry: bool = False, making: bool = False) -> Answer:
        """One server-side apply. Fields that others own are taken only where the project says so, field by field.

        Our own marks, which a backup or a copy has written again, are taken back; not when the object should not exist yet
        (`making`): then another project made it.
        """
        try:
            return self._patch(key, body, force=False, dry=dry)
        except errors.ConflictError as error:
            held = [cause for cause in error.causes if cause.reason == "FieldManagerConflict"]
            if not held:
                raise Conflict(f"{key} has changed: {error}") from error
            kept = [cause for cause in held if not self._takes(key, cause.field, marks=not making)]
            if kept:
                raise Refused(_conflict_words(kept)) from error
            try:
                return self._patch(key, body, force=True, dry=dry)
            except errors.ApiError as again:
                refuse(key, again)
        except errors.NotFound as error:  # of the object only when a version was asked for
            if "resourceVersion" not in body["metadata"]:
                raise Unavailable(
                    f"{key} cannot be written, something that it needs is not there: {error}"
                ) from error
            raise Conflict(f"{key} is gone") from error
        except errors.ApiError as error:
            refuse(key, error)

    def release(self, key: Key) -> None:
        """Give back every field that we own in an object that is not ours."""
        body = {
            "apiVersion": key.api_version,
            "kind": key.kind,
            "metadata": {"name": key.name, **({"namespace": key.namespace} if key.namespace else {})},
        }
        try:
            self._patch(key, body, force=False, dry=False)
        except errors.ApiError as error:
            raise Refused(f"{key} exists already, and has fields of ours now: {error}") from error

    def is_run(self, key: Key) -> bool:
        """Whether objects of this kind run once, and are never applied over."""
        read = readings("kubernetes").get(key.kind)
        return read is not None and read.run is not None

    def _patch(self, key: Key, body: JSON, *, force: bool, dry: bool) -> Answer:
        query = {
            "fieldManager": self._manager,
            "force": str(force).lower(),
            "fieldValidation": "Strict",
        }
        if dry:
            query["dryRun"] = "All"
        return self._transport.request(
            "PATCH",
            self._discovery.path(key.api_version, key.kind, key.namespace, key.name),
            query=query,
            body=body,
            content_type=APPLY_TYPE,
        )

    def _takes(self, key: Key, field: str, *, marks: bool) -> bool:
        if field.startswith((".metadata.annotations." + OWN, ".metadata.labels." + OWN)) and marks:
            return True
        return any(
            rule.owner == "mlspec" and _meets(rule, key) and fieldpaths.covers(rule.field, field.lstrip("."))
            for rule in self._fields
        )


def refuse(key: Key, error: errors.ApiError) -> NoReturn:
    """Raise what the server refused as a `Refused` with a sentence for people."""
    if isinstance(error, errors.Invalid):
        for cause in error.causes:
            if IMMUTABLE.search(cause.message):
                raise Immutable(cause.field, cause.message) from error
        details = "; ".join(": ".join(filter(None, (one.field, one.message))) for one in error.causes)
        raise Refused(f"it is not valid: {details or error}") from error
    if isinstance(error, errors.NotServed):
        raise Refused(f"the cluster does not serve {key.kind} of {key.api_version}") from error
    if isinstance(error, errors.Forbidden):
        raise Refused(f"it is not permitted: {error}") from error
    raise Refused(str(error)) from error


def _conflict_words(causes: Sequence[errors.Cause]) -> str:
    fields = ", ".join(cause.field.lstrip(".") for cause in causes)
    managers = sorted({cause.message.split('"')[1] for cause in causes if '"' in cause.message})
    return (
        f"{fields} belongs to {', '.join(managers) or 'another manager'}; leave it to them or take it, "
        "with the target's fields: [{kind, field, owner: other|mlspec}]"
    )


def _meets(rule: FieldRule, key: Key) -> bool:
    return bool(rule.kind == key.kind and rule.name in (None, key.name))
