"""Saved plans: `plan --out FILE` keeps what a reviewer saw, `apply FILE` does that or refuses by name.

The file holds digests, uids and versions, never a value of a spec field, so a secret cannot leak through it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlspec_reconciler.plan import Action, Change, Plan
from mlspec_reconciler.reconcile import Round
from mlspec_reconciler.show.plan import key_text
from mlspec_reconciler.workspace import Opened

FORMAT = "mlspec-plan/1"


def save(path: Path, project: Opened, seen: Round) -> None:
    """Write the plan."""
    document = {
        "format": FORMAT,
        "target": project.target_name,
        "cluster": seen.plan.cluster,
        "sources": _sources(project),
        "changes": _changes(seen.plan),
    }
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def read(path: Path) -> Mapping[str, Any] | str:
    """The saved plan, or a sentence why the file is none."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        return f"{path} cannot be read as a plan: {error}"
    parts = {"target": str, "cluster": str, "sources": dict, "changes": dict}
    if (
        not isinstance(document, dict)
        or document.get("format") != FORMAT
        or not all(isinstance(document.get(name), wanted) for name, wanted in parts.items())
    ):
        return (
            f"{path} is not a plan of this version of mlspec; make a new one with: mlspec plan --out {path}"
        )
    return document


def moved(saved: Mapping[str, Any], project: Opened, seen: Round) -> list[str]:
    """What is not as it was when the plan was made, one sentence each; empty when the plan still holds."""
    if saved["cluster"] != seen.plan.cluster:
        return [f"the plan was made for the cluster {saved['cluster']}, this is {seen.plan.cluster}"]
    sources, now = _sources(project), _changes(seen.plan)
    names = sorted({*saved["sources"], *sources})
    edited = [name for name in names if saved["sources"].get(name) != sources.get(name)]
    sentences = [f"{name}: was edited after the plan was made" for name in edited]
    for name in dict.fromkeys([*saved["changes"], *now]):
        before, after = saved["changes"].get(name), now.get(name)
        if before == after:
            continue
        if before is None:
            sentences.append(f"{name}: would change now, but not in the plan")
        elif after is None:
            sentences.append(f"{name}: is as planned already")
        else:
            sentences.append(f"{name}: changed after the plan was made")
    return sentences


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


def _changes(plan: Plan) -> dict[str, Any]:
    return {
        f"{change.resource} {change.action} {change.run}".strip(): _change(change)
        for change in plan.changes
        if change.action not in (Action.FOLLOW, Action.CONTINUE)
    }


def _change(change: Change) -> list[Any]:
    return [
        [
            str(write.verb),
            key_text(write.key),
            write.manifest.digest if write.manifest else "",
            write.uid,
            write.version,
        ]
        for write in change.writes
    ]
