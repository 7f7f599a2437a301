"""The custom resource definitions that our compiler's output needs: with full schemas, from the Go modules that own them.

Nothing is copied into the repository: the pin is here, the text comes by `go mod download` and is kept as JSON in the
user's cache (YAML of this size takes seconds to parse).
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.bed import build
from cluster.bed.api import Api, ApiError, Document
from cluster.bed.processes import wait_for

API_VERSION = "apiextensions.k8s.io/v1"
KIND = "CustomResourceDefinition"
OURS = Path(__file__).parents[3] / "schemas" / "crds"


@dataclass(frozen=True)
class Source:
    """A Go module at its pin, and the folder in it that holds the definitions."""

    module: str
    version: str
    folder: str
    schemaless: tuple[str, ...] = ()
    """Files taken from the folder `minimal` beside it: kinds that we never emit, whose schema costs a second each."""


SOURCES = {
    # `full`, not `minimal`: the schemaless ones accept anything and the controller fails later.
    "argo": Source(
        "github.com/argoproj/argo-workflows/v3",
        "v3.7.3",
        "manifests/base/crds/full",
        ("argoproj.io_clusterworkflowtemplates.yaml", "argoproj.io_workflowtasksets.yaml"),
    ),
    # `bases`, without the conversion webhooks that kustomize adds: we use the storage version only.
    "kueue": Source("sigs.k8s.io/kueue", "v0.19.2", "config/components/crd/bases"),
    "gateway": Source("sigs.k8s.io/gateway-api", "v1.6.1", "config/crd/standard"),
}


def install(api: Api, *names: str) -> list[str]:
    """Create the definitions of `SOURCES` by name, and ours by the name `mlspec`; the names of the CRDs.

    Returns when the API server serves them all. Installing again is fine.

    Raises:
        build.Unavailable, build.BuildFailed: they are not in the cache, and Go is missing or the download failed.
        ApiError: the API server refused one.
    """
    definitions = [definition for name in names for definition in load(name)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda definition: api.apply([definition]), definitions))
    wait_for(
        lambda: all(_served(api, definition) for definition in definitions),
        f"CRDs of {names}",
        timeout=120.0,  # a machine that builds something beside takes ten times as long
        every=0.1,
    )
    return sorted(definition["metadata"]["name"] for definition in definitions)


def load(name: str) -> list[Document]:
    """The definitions of one of `SOURCES`, or ours (`mlspec`), as documents. Raises: as `install`."""
    if name == "mlspec":
        return [definition for path in sorted(OURS.glob("*.yaml")) for definition in _read(path)]
    source = SOURCES[name]
    cached = build.cache_root() / "crds" / f"{name}-{source.version}.json"
    if not cached.exists():
        folder = build.module_folder(source.module, source.version) / source.folder
        found = [
            definition
            for path in sorted(folder.glob("*.yaml"))
            for definition in _read(
                path.parent.with_name("minimal") / path.name if path.name in source.schemaless else path
            )
        ]
        cached.parent.mkdir(exist_ok=True)
        half = cached.with_suffix(f".{os.getpid()}")
        half.write_text(json.dumps(found))
        half.replace(cached)
    definitions: list[Document] = json.loads(cached.read_text())
    return definitions


def _read(path: Path) -> list[Document]:
    documents = yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)
    return [document for document in documents if document and document["kind"] == KIND]


def _served(api: Api, definition: Document) -> bool:
    """Whether discovery shows it (what follows `Established`, and far smaller to ask for than the definition), and its
    storage is ready: before, the API server answers 429."""
    spec = definition["spec"]
    version = next(each["name"] for each in spec["versions"] if each["storage"])
    root, plural = f"/apis/{spec['group']}/{version}", spec["names"]["plural"]
    try:
        if not any(each["name"] == plural for each in api.request("GET", root)["resources"]):
            return False
        api.request("GET", f"{root}/{plural}", limit="1")
    except ApiError as error:
        if error.status not in (404, 429):
            raise
        return False
    return True
