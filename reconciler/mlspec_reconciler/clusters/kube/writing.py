"""Writes of one project: server-side apply by one field manager, creates of runs, and the server's refusals in words.

Nothing is taken from another manager unless the project says so, field by field (`fields` of its target).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mlspec.compile import readings
from mlspec.kinds.project import FieldRule, KubernetesTarget
from mlspec.manifest import Key
from mlspec_reconciler.cluster import Conflict, Immutable, Refused, Unavailable, key_of
from mlspec_reconciler.clusters.kube import errors
from mlspec_reconciler.clusters.kube.bodies import OWN, manager
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.transport import APPLY_TYPE, Answer, Transport

JSON = Mapping[str, Any]
IMMUTABLE = re.compile("immutable|may not change|cannot change|updates to .* are forbidden")
"""How the server says that a field cannot be changed in place; there is no reason for it in the API."""


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
        metadata = dict(body["metadata"])
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **annotations}
        metadata["labels"] = {**(metadata.get("labels") or {}), OWN + "project": self._project}
        return {**self.wanted(body), "metadata": metadata}

    def wanted(self, body: JSON) -> JSON:
        """The body without the fields that the project leaves to others."""
        key = key_of(body)
        left = [rule.field for rule in self._fields if rule.owner == "other" and _meets(rule, key)]
        metadata = dict(body["metadata"])
        metadata["labels"] = {**(metadata.get("labels") or {}), OWN + "project": self._project}
        wanted: JSON = {**body, "metadata": metadata}
        for field in left:
            wanted = _without(wanted, field.split("."))
        return wanted

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

    def apply(self, key: Key, body: JSON, *, dry: bool = False) -> Answer:
        """One server-side apply. Fields that others own are taken only where the project says so, field by field."""
        try:
            return self._patch(key, body, force=False, dry=dry)
        except errors.ConflictError as error:
            held = [cause for cause in error.causes if cause.reason == "FieldManagerConflict"]
            if not held:
                raise Conflict(f"{key} has changed: {error}") from error
            kept = [cause for cause in held if not self._takes(key, cause.field)]
            if kept:
                raise Refused(_conflict_words(kept)) from error
            try:
                return self._patch(key, body, force=True, dry=dry)
            except errors.ApiError as again:
                refuse(key, again)
        except errors.NotFound as error:  # of the object only when a version was asked for
            if "resourceVersion" not in body["metadata"]:
                raise Unavailable(f"the namespace {self._namespace} is gone: {error}") from error
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

    def _takes(self, key: Key, field: str) -> bool:
        return any(
            rule.owner == "mlspec" and _meets(rule, key) and rule.field == field.lstrip(".")
            for rule in self._fields
        )


def refuse(key: Key, error: errors.ApiError) -> NoReturn:
    """Raise what the server refused as a `Refused` with a sentence for people."""
    if isinstance(error, errors.Invalid):
        for cause in error.causes:
            if IMMUTABLE.search(cause.message):
                raise Immutable(cause.field, cause.message) from error
        details = "; ".join(f"{cause.field}: {cause.message}" for cause in error.causes)
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


def _without(body: Any, path: Sequence[str]) -> Any:
    """A copy without the field."""
    if not path or not isinstance(body, Mapping) or path[0] not in body:
        return body
    if len(path) == 1:
        return {name: value for name, value in body.items() if name != path[0]}
    return {**body, path[0]: _without(body[path[0]], path[1:])}
