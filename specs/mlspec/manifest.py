"""Manifest: one object of a target, as plain JSON data with the place in git that it came from.

Engines make manifests from workloads; `mlspec_reconciler.plan` compares them with what a cluster holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlspec.diagnostics import Mark

Body = Mapping[str, Any]
OWN = "mlspec.dev/"
"""Prefix of our labels and annotations."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: object) -> str:
    """Hexadecimal SHA-256 of `value` as canonical JSON (sorted keys, no spaces); equal values, equal digests."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What identifies an object within a target."""

    api_version: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an object came from: the resource (`Kind/name`) and its place in git."""

    resource: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Manifest:
    """One desired object. `body` is complete (apiVersion, kind, metadata, ...).

    `create_only`: created once and never changed, and kept until its resource goes. Runs are, named by the hash of what
    they compute, and the code that they need.
    """

    body: Body
    origin: Origin
    create_only: bool = False
    title: str = ""
    """What a person calls it when it is a run (`train late-arrival`); only runs have a title."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """What the name of a run is made of: digests by part."""
    after: str = ""
    """The failed run in whose place a person may have this one made."""

    @property
    def key(self) -> Key:
        metadata = self.body["metadata"]
        return Key(
            self.body["apiVersion"], self.body["kind"], metadata.get("namespace", ""), metadata["name"]
        )

    @property
    def digest(self) -> str:
        """Digest of the body without our own annotations: a moved line in a file is no change. Of a Secret it leaves out
        the values: whoever reads a digest can try passwords against it."""
        body = self.body
        metadata = body["metadata"]
        if notes := metadata.get("annotations"):
            others = {name: value for name, value in notes.items() if not name.startswith(OWN)}
            body = {**body, "metadata": {**metadata, "annotations": others}}
        if body["kind"] == "Secret":
            hidden = {part: dict.fromkeys(body[part]) for part in ("data", "stringData") if body.get(part)}
            body = {**body, **hidden}
        return digest(body)
