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
MOST = 8
"""ConfigMaps that are joined to one folder: every one is an object in etcd, and is read when a pod starts."""
WAYS_OUT = "keep the target's data in S3 (storage: s3://...), or put large files into a Dataset or the image"
LONGEST_KEY = 253
_UNSAFE = re.compile(rb"[^-._a-zA-Z0-9]|_(?=[0-9a-f]{2})")


def key(path: str) -> str:
    """A key of a ConfigMap for the file `path`: what a key may not hold becomes `_` and the byte in hexadecimal."""
    return _UNSAFE.sub(lambda found: b"_%02x" % found[0][0], path.encode()).decode()


def path_of(key: str) -> str:
    """The inverse of `key`."""
    return re.sub(rb"_([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), key.encode()).decode()


def content(files: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
    """`data` (text) and `binaryData` (all else, base64) of a ConfigMap with these files by path."""
    texts: dict[str, str] = {}
    binaries: dict[str, str] = {}
    for path, content in sorted(files.items()):
        text = _text(content)
        if text is None:
            binaries[key(path)] = base64.b64encode(content).decode()
        else:
            texts[key(path)] = text
    return {"data": texts} | ({"binaryData": binaries} if binaries else {})


def split(files: Mapping[str, bytes]) -> list[dict[str, bytes]] | str:
    """The files in as few ConfigMaps as their order allows, or why they fit into none, or not into `MOST`."""
    parts: list[dict[str, bytes]] = [{}]
    room = LARGEST
    for path, content in sorted(files.items()):
        if len(key(path)) > LONGEST_KEY:
            return f"the path {path} is too long for a ConfigMap; shorten it or put the file into the image"
        size = _size(path, content)
        if size > LARGEST:
            return f"the file {path} ({size >> 10} KiB) is larger than a ConfigMap ({LARGEST >> 10} KiB); {WAYS_OUT}"
        if size > room:
            parts.append({})
            room = LARGEST
        parts[-1][path] = content
        room -= size
    if len(parts) > MOST:
        size = sum(_size(path, content) for path, content in files.items())
        return f"{size >> 10} KiB of files are more than {MOST} ConfigMaps hold; {WAYS_OUT}"
    return parts


def fits(files: Mapping[str, bytes]) -> bool:
    """Whether one ConfigMap holds the files."""
    parts = split(files)
    return not isinstance(parts, str) and len(parts) == 1


def _size(path: str, content: bytes) -> int:
    """Bytes of a file in a ConfigMap, with its key."""
    return len(key(path)) + (len(content) if _text(content) is not None else -(-len(content) // 3) * 4)


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def config_map(metadata: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """An immutable ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, **content}


def volume(name: str, config_maps: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any]:
    """The volume of a pod in which the files, by the ConfigMap that holds them, have their paths again."""
    sources = [
        {"name": one, "items": [{"key": key(path), "path": path} for path in sorted(paths)]}
        for one, paths in config_maps.items()
    ]
    if len(sources) == 1:
        return {"name": name, "configMap": sources[0]}
    return {"name": name, "projected": {"sources": [{"configMap": one} for one in sources]}}
