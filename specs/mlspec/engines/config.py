"""ConfigMaps that pods read as files: code bundles and task documents.

They are immutable and created once: a changed file is a ConfigMap of another name, so a change reaches pods only with the
pod template that names it, and a pod that is started again sees what its siblings see.
https://kubernetes.io/docs/concepts/configuration/configmap/#configmap-immutable
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

PART = "mlspec.dev/part"
"""Label: `record`, `code` or `task`."""
LARGEST = 900 * 2**10
"""Bytes of keys and values. Kubernetes refuses more than 1 MiB; the rest is for metadata."""
LONGEST_KEY = 253
_UNSAFE = re.compile(rb"[^-._a-zA-Z0-9]|_(?=[0-9a-f]{2})")


def key(path: str) -> str:
    """A key of a ConfigMap for the file `path`: what a key may not hold becomes `_` and the byte in hexadecimal."""
    return _UNSAFE.sub(lambda found: b"_%02x" % found[0][0], path.encode()).decode()


def path_of(key: str) -> str:
    """The inverse of `key`."""
    return re.sub(rb"_([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), key.encode()).decode()


def data(files: Mapping[str, bytes]) -> dict[str, dict[str, str]] | str:
    """`data` (text) and `binaryData` (all else, base64) of a ConfigMap with these files by path, or why it cannot be."""
    texts: dict[str, str] = {}
    binaries: dict[str, str] = {}
    for path, content in sorted(files.items()):
        name = key(path)
        if len(name) > LONGEST_KEY:
            return f"the path {path} is too long for a ConfigMap; shorten it or put the file into the image"
        try:
            texts[name] = content.decode("utf-8")
        except UnicodeDecodeError:
            binaries[name] = base64.b64encode(content).decode()
    size = sum(len(name) + len(value.encode()) for part in (texts, binaries) for name, value in part.items())
    if size > LARGEST:
        largest = max(files, key=lambda path: len(files[path]))
        return (
            f"{size >> 10} KiB of files are more than a ConfigMap holds ({LARGEST >> 10} KiB; the largest is {largest}); "
            "put large files into a Dataset or the image"
        )
    return {"data": texts} | ({"binaryData": binaries} if binaries else {})


def config_map(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """An immutable ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, **content}


def volume(name: str, config_map: str, paths: Mapping[str, bytes]) -> dict[str, Any]:
    """The volume of a pod in which the files have their paths again."""
    items = [{"key": key(path), "path": path} for path in sorted(paths)]
    return {"name": name, "configMap": {"name": config_map, "items": items}}
