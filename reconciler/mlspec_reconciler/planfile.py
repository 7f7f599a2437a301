"""Saved plans: `plan --out FILE` keeps what a reviewer saw, `apply FILE` does that or refuses by name.

The file holds digests and uids, never a value of a field, so a secret cannot leak through it. A digest of a Secret is keyed,
because short values could be guessed from a plain one: the key stays in `.mlspec`, so such a plan holds in its clone only.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlspec.manifest import digest
from mlspec_reconciler.cluster import Object, is_same
from mlspec_reconciler.plan import Action, Change, Write
from mlspec_reconciler.show.plan import key_text
from mlspec_reconciler.step import Observation
from mlspec_reconciler.workspace import Opened

FORMAT = "mlspec-plan/2"
KEY = "plan.key"
SEALED = "Secret"
ELSEWHERE = "can be compared only in the clone where the plan was made"


def save(path: Path, project: Opened, seen: Observation) -> None:
    """Write the plan."""
    key = _key(project)
    document = {
        "format": FORMAT,
        "target": project.target_name,
        "cluster": seen.plan.cluster,
        "clone": _seal(key, "clone"),
        "sources": _sources(project),
        "changes": _changes(seen, key),
    }
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def read(path: Path) -> Mapping[str, Any] | str:
    """The saved plan, or a sentence why the file is none."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return f"{path} cannot be read as a plan: {error}"
    parts = {"target": str, "cluster": str, "clone": str, "sources": dict, "changes": dict}
    if (
        not isinstance(document, dict)
        or document.get("format") != FORMAT
        or not all(isinstance(document.get(name), wanted) for name, wanted in parts.items())
    ):
        return (
            f"{path} is not a plan of this version of mlspec; make a new one with: mlspec plan --out {path}"
        )
    return document


def moved(saved: Mapping[str, Any], project: Opened, seen: Observation) -> list[str]:
    """What is not as it was when the plan was made, one sentence each; empty when the plan still holds."""
    if not is_same(saved["cluster"], seen.plan.cluster):
        return [f"the plan was made for the cluster {saved['cluster']}, this is {seen.plan.cluster}"]
    key = _key(project)
    sources, now = _sources(project), _changes(seen, key)
    names = sorted({*saved["sources"], *sources})
    sentences = [
        f"{name}: was edited after the plan was made"
        for name in names
        if saved["sources"].get(name) != sources.get(name)
    ]
    same_clone = saved["clone"] == _seal(key, "clone")
    uids = {key_text(one.key): one.uid for one in seen.objects}
    for name in dict.fromkeys([*saved["changes"], *now]):
        before, after = saved["changes"].get(name), now.get(name)
        if before is None and not after:
            sentences.append(f"{name}: would change now, but not in the plan")
        elif after is None and not before:
            sentences.append(f"{name}: is as planned already")
        for one in dict.fromkeys([*(before or {}), *(after or {})]):
            old, new = (before or {}).get(one), (after or {}).get(one)
            if old != new:
                sealed = one.split(" ")[1] == SEALED and not same_clone
                words = ELSEWHERE if sealed else _differs(old, new, uids.get(one, ""))
                sentences.append(f"{name}: {one.split(' ', 1)[1]} {words}")
    return sentences


def _differs(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, uid: str) -> str:
    """How one object is not as it was; `uid` of what is there now."""
    if old is None:
        return "would be written now, but not in the plan"
    if new is None:
        if uid == "":
            return "is gone already"
        return "is as planned already" if uid == old["uid"] else "was deleted and made again meanwhile"
    match old["uid"], new["uid"]:
        case "", uid if uid:
            return "was made meanwhile"
        case uid, "" if uid:
            return "was deleted meanwhile"
        case one, other if one != other:
            return "was deleted and made again meanwhile"
    if old["live"] != new["live"]:
        return "was edited meanwhile"
    if old["wanted"] != new["wanted"]:
        return "would be another one now"
    if new["refused"] != old["refused"]:
        return "is refused now" if new["refused"] else "is accepted now"
    return f"is to {new['verb']} now, not to {old['verb']}"


def _sources(project: Opened) -> dict[str, str]:
    """Digest of every spec, function and source file: a resource that waits has no objects yet that would tell."""
    if project.wanted is None:
        return {}
    wanted = project.wanted
    code = {
        f"code {key.split('|')[1]} of {key.split('|')[0]}/": one.digest for key, one in wanted.code.items()
    }
    files = {f"files of {name}": one.digest for name, one in wanted.files.items()}
    return {**wanted.project.digests, **code, **files}


def _changes(seen: Observation, key: bytes) -> dict[str, Any]:
    live = {one.key: one for one in seen.objects}
    return {
        f"{change.resource} {change.action} {change.run}".strip(): _change(change, live, key)
        for change in seen.plan.changes
        if change.action not in (Action.FOLLOW, Action.CONTINUE)
    }


def _change(change: Change, live: Mapping[Any, Object], key: bytes) -> dict[str, Any]:
    return {key_text(write.key): _write(write, live.get(write.key), key) for write in change.writes}


def _write(write: Write, live: Object | None, key: bytes) -> dict[str, Any]:
    wanted = digest(write.manifest.body) if write.manifest else ""
    content = live.content if live is not None else ""
    if write.key.kind == SEALED:
        wanted, content = _seal(key, wanted), _seal(key, content)
    return {
        "verb": str(write.verb),
        "wanted": wanted,
        "live": content,
        "uid": live.uid if live is not None else "",
        "refused": bool(write.refusal),
    }


def _seal(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def _key(project: Opened) -> bytes:
    """The key of this clone; made when there is none."""
    path = project.workspace.home / KEY
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    return path.read_bytes()
