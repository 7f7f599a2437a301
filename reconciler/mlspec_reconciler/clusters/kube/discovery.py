"""Which kinds an API server serves, and at which paths. Read once, kept on disk for each server.

What is served now may be unknown: an aggregated API is down, the server is just starting. `Unavailable` then, never
"absent": what decides on absence would delete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.clusters.kube import errors
from mlspec_reconciler.clusters.kube.transport import JSON_TYPE, Transport

_AGGREGATED = ",".join(
    (
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        JSON_TYPE,
    )
)
_FORMAT = 1
_KEPT = 3600.0
"""Seconds that what was found is believed. What was not found is asked for again."""
_FRESH = 5.0
"""Seconds after which a kind that is missing is worth another look. What the disk remembers is never fresh."""


@dataclass(frozen=True, slots=True)
class ApiResource:
    """One kind in one version of its group, as the server serves it."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    verbs: tuple[str, ...]

    @property
    def api_version(self) -> str:
        """`apps/v1`, `v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of one object, or of a collection without `name`: of all namespaces without `namespace`."""
        parts = [_root(self.api_version)]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


@dataclass(frozen=True, slots=True)
class _Found:
    """`unknown`: apiVersions whose server does not answer."""

    time: float
    resources: Mapping[tuple[str, str], ApiResource]
    unknown: frozenset[str]


class Discovery:
    """The kinds of one API server. Safe to use from several threads. `cache`: a folder, made when it is missing."""

    def __init__(self, transport: Transport, cache: Path) -> None:
        self._transport = transport
        self._file = (
            cache / f"discovery-{hashlib.sha256(transport.fingerprint.encode()).hexdigest()[:16]}.json"
        )
        self._lock = threading.Lock()
        self._found: _Found | None = None
        self._asked = float("-inf")

    @staticmethod
    def cached(transport: Transport) -> Discovery:
        """With the cache of this user."""
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Discovery(transport, Path(home).expanduser() / "mlspec" / "discovery")

    def resource(self, api_version: str, kind: str) -> ApiResource | None:
        """What serves this kind, or None when it is certain that nothing does. `Unavailable` when that is unknown."""
        with self._lock:
            if self._found is None:
                self._found = self._remembered()
            found = self._found
            if (api_version, kind) not in found.resources and self._asked + _FRESH < time.monotonic():
                found = self._found = self._ask()
        resource = found.resources.get((api_version, kind))
        if resource is None and api_version in found.unknown:
            raise Unavailable(
                f"{self._transport.server}: the API {api_version} does not answer now: see kubectl get apiservice"
            )
        return resource

    def path(
        self, api_version: str, kind: str, namespace: str = "", name: str = "", subresource: str = ""
    ) -> str:
        """As `ApiResource.path`; `errors.NotServed` when the cluster lacks the kind."""
        resource = self.resource(api_version, kind)
        if resource is None:
            raise errors.NotServed(404, "NotServed", f"the API server does not serve {kind} ({api_version})")
        return resource.path(namespace, name, subresource)

    def missing(self, kinds: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of (apiVersion, kind) that the cluster lacks for certain."""
        return [pair for pair in kinds if self.resource(*pair) is None]

    def refresh(self) -> None:
        """Ask the server again, now: a definition was created or deleted."""
        with self._lock:
            self._found = self._ask()

    def _remembered(self) -> _Found:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            document = orjson.loads(self._file.read_bytes())
            age = time.time() - document["time"]
            if document["format"] == _FORMAT and 0 <= age < _KEPT:
                rows = [ApiResource(**row | {"verbs": tuple(row["verbs"])}) for row in document["resources"]]
                return _found(document["time"], rows, document["unknown"])
        return self._ask()

    def _ask(self) -> _Found:
        resources: list[ApiResource] = []
        unknown: list[str] = []
        legacy: list[str] = []
        for root in ("/api", "/apis"):
            try:
                body = self._transport.request("GET", root, accept=_AGGREGATED).body
            except errors.ApiError as error:
                raise Unavailable(
                    f"{self._transport.server} does not tell what it serves: {error.message}"
                ) from error
            match body["kind"]:
                case "APIGroupDiscoveryList":
                    for item in body.get("items") or ():
                        resources += _aggregated(item)
                        unknown += _stale(item)
                case "APIVersions":
                    legacy += body["versions"]
                case "APIGroupList":
                    legacy += [each["groupVersion"] for group in body["groups"] for each in group["versions"]]
        for api_version, found in zip(legacy, self._transport.each(self._ask_one, legacy), strict=True):
            match found:
                case errors.NotServed():  # it went meanwhile
                    continue
                case errors.ApiError() | None:
                    unknown.append(api_version)
                case _:
                    resources += found
        self._wait_until_ready()
        self._asked = time.monotonic()
        result = _found(time.time(), resources, unknown)
        self._remember(result)
        return result

    def _ask_one(self, api_version: str) -> list[ApiResource] | None:
        """One version of a group from a server before 1.27; None when it does not answer (an aggregated API is down)."""
        try:
            body = self._transport.request("GET", _root(api_version), retry=False).body
        except Unavailable:
            return None
        return [*_legacy(api_version, body["resources"])]

    def _wait_until_ready(self) -> None:
        """A server that starts leaves out the kinds that it has not read yet."""
        with contextlib.suppress(errors.ApiError):  # not everybody may ask
            self._transport.text("/readyz")

    def _remember(self, found: _Found) -> None:
        document = {
            "format": _FORMAT,
            "time": found.time,
            "server": self._transport.server,
            "resources": [*found.resources.values()],
            "unknown": sorted(found.unknown),
        }
        fresh = self._file.with_name(f".{self._file.name}.{os.getpid()}.{threading.get_ident()}")
        with contextlib.suppress(OSError):  # a cache: the next process asks again
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.touch(mode=0o600)
            fresh.write_bytes(orjson.dumps(document))
            fresh.replace(self._file)


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _found(at: float, resources: Iterable[ApiResource], unknown: Iterable[str]) -> _Found:
    return _Found(at, {(one.api_version, one.kind): one for one in resources}, frozenset(unknown))


def _aggregated(item: Mapping[str, Any]) -> Iterator[ApiResource]:
    """Of one APIGroupDiscovery (apidiscovery.k8s.io/v2)."""
    group = item["metadata"].get("name", "")
    for version in item.get("versions") or ():
        for each in version.get("resources") or ():
            kind = each.get("responseKind") or {}
            if kind.get("kind"):
                scope, verbs = each["scope"] == "Namespaced", tuple(each.get("verbs") or ())
                yield ApiResource(group, version["version"], kind["kind"], each["resource"], scope, verbs)


def _stale(item: Mapping[str, Any]) -> Iterator[str]:
    group = item["metadata"].get("name", "")
    for version in item.get("versions") or ():
        if version.get("freshness") == "Stale":
            yield f"{group}/{version['version']}" if group else version["version"]


def _legacy(api_version: str, resources: Iterable[Mapping[str, Any]]) -> Iterator[ApiResource]:
    group, _, version = api_version.rpartition("/")
    for each in resources:
        if "/" not in each["name"]:
            yield ApiResource(
                group, version, each["kind"], each["name"], each["namespaced"], tuple(each["verbs"])
            )
