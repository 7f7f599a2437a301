"""Ledger: the small documents of the reconciler (inventory, triggers, ends of runs) as ConfigMaps beside the objects.

They carry their own label, so that they are never taken for objects of the project. Documents are compressed: a ConfigMap
holds 1 MiB. Each write names the version that was read, so that two people who apply at once do not overwrite each other.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

from mlspec.workload import RunFact
from mlspec_reconciler.cluster import Conflict, Refused, Unavailable
from mlspec_reconciler.clusters.kube import errors
from mlspec_reconciler.clusters.kube.transport import APPLY_TYPE, Transport

LABEL = "mlspec.dev/ledger"
LARGEST = 1_000_000
"""Bytes of a ConfigMap's content that an API server surely takes (its limit is 1 MiB)."""


class Ledger:
    """The documents of one project in one namespace."""

    def __init__(self, transport: Transport, namespace: str, project: str) -> None:
        self._transport = transport
        self._project = project
        self._namespace = namespace
        self._folder = f"/api/v1/namespaces/{namespace}/configmaps"
        self._versions: dict[str, str] = {}
        """resourceVersion of each document as it was read or written last; absent: there was none."""

    def read(self, name: str) -> Mapping[str, Any] | None:
        """A document; None when it was never written."""
        try:
            body = self._transport.request("GET", f"{self._folder}/{self._name(name)}").body
        except errors.NotFound:
            self._versions.pop(name, None)
            return None
        except errors.ApiError as error:
            raise self._unread(name, error) from error
        self._versions[name] = body["metadata"]["resourceVersion"]
        return _unpack(body)

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace a document, or make it. Raises `Conflict` when somebody else wrote it since `read`."""
        body = self._body(self._name(name), document, "note")
        version = self._versions.get(name)
        try:
            if version is None:
                answer = self._transport.request("POST", self._folder, body=body)
            else:
                body["metadata"]["resourceVersion"] = version
                answer = self._transport.request("PUT", f"{self._folder}/{self._name(name)}", body=body)
        except (errors.AlreadyExists, errors.ConflictError, errors.NotFound) as error:
            # Our own write may have arrived although its answer did not.
            if self.read(name) != document:
                raise Conflict(f"the {name} of {self._project} was written by somebody else") from error
            return
        except errors.ApiError as error:
            raise Refused(f"mlspec keeps its {name} in ConfigMaps of {self._namespace}: {error}") from error
        self._versions[name] = answer.body["metadata"]["resourceVersion"]

    def remember(self, run: str, fact: RunFact) -> None:
        """Keep how a run ended; repeated writes are one."""
        document = {"phase": fact.phase, "results": dict(fact.results), "message": fact.message}
        body = self._body(f"mlspec-run-{run}", {"run": run, **document}, "run")
        try:
            self._transport.request(
                "PATCH",
                f"{self._folder}/{body['metadata']['name']}",
                query={"fieldManager": "mlspec", "force": "true"},
                body=body,
                content_type=APPLY_TYPE,
            )
        except errors.ApiError as error:
            raise Unavailable(f"the end of {run} cannot be kept in {self._namespace}: {error}") from error

    def runs(self) -> dict[str, RunFact]:
        """All ends that were kept, by the name of the run."""
        found = {}
        for body in self._documents("run"):
            document = _unpack(body)
            found[document["run"]] = RunFact(document["phase"], document["results"], document["message"])
        return found

    def clear(self) -> None:
        """Delete every document."""
        for body in [*self._documents("note"), *self._documents("run")]:
            try:
                self._transport.request("DELETE", f"{self._folder}/{body['metadata']['name']}")
            except errors.NotFound:
                continue
            except errors.ApiError as error:
                raise Unavailable(f"{body['metadata']['name']} cannot be deleted: {error}") from error
        self._versions.clear()

    def _documents(self, sort: str) -> list[dict[str, Any]]:
        selector = f"{LABEL}={self._project},mlspec.dev/part={sort}"
        try:
            return self._transport.list(self._folder, query={"labelSelector": selector})[0]
        except errors.ApiError as error:
            raise self._unread(f"{sort}s", error) from error

    def _unread(self, name: str, error: errors.ApiError) -> Unavailable:
        words = f"mlspec keeps its {name} in ConfigMaps of {self._namespace}, which cannot be read"
        return Unavailable(f"{words}: {error}")

    def _name(self, name: str) -> str:
        return f"mlspec-{self._project}-{name}"

    def _body(self, name: str, document: Mapping[str, Any], sort: str) -> dict[str, Any]:
        packed = base64.b64encode(zlib.compress(json.dumps(document).encode())).decode()
        if len(packed) > LARGEST:
            raise Refused(
                f"{name} has {len(packed):,} bytes, a ConfigMap holds {LARGEST:,}: split the repository into projects"
            )
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": {
                    "app.kubernetes.io/managed-by": "mlspec",
                    LABEL: self._project,
                    "mlspec.dev/part": sort,
                },
            },
            "binaryData": {"document": packed},
        }


def _unpack(body: Mapping[str, Any]) -> dict[str, Any]:
    content = zlib.decompress(base64.b64decode(body["binaryData"]["document"]))
    document: dict[str, Any] = json.loads(content)
    return document
