"""The reference of the spec language as Markdown, one page per kind, generated from the models and the examples.

`mlspec schema --write` puts the pages into `docs/reference/`; `mlspec.explain` says the same for one field in a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mlspec import API_VERSION, explain, fields, source
from mlspec.gates import METRICS
from mlspec.kind_table import KINDS
from mlspec.resource import Base, OneOf
from mlspec.schema import model_doc

HEADER = "<!-- Generated from the models by: mlspec schema --write -->\n\n"
"""First line of each page."""


def pages(examples: Iterable[tuple[str, str]]) -> dict[str, str]:
    """All pages by file name. `examples` are spec files, (path, text); each kind shows the first that has one of it."""
    shown = _shown(examples)
    found = {f"{kind.lower()}.md": HEADER + _page(kind, shown.get(kind)) for kind in KINDS}
    rows = "\n".join(
        f"| [{kind}]({kind.lower()}.md) | {_cell(model_doc(entry.model))} |" for kind, entry in KINDS.items()
    )
    found["README.md"] = f"{HEADER}# Reference\n\n{_COMMON}\n| kind | |\n|---|---|\n{rows}\n\n{_metrics()}"
    return found


_COMMON = f"""Every document has `apiVersion: {API_VERSION}`, `kind`, `metadata` (`name`, `labels`, `annotations`) and `spec`. In a terminal:
`mlspec explain KIND.field`. Durations are `30s`, `5m`, `3h`, `90d`; quantities `500m`, `4Gi`; shares `0.001` or `0.1%`; times ISO 8601, UTC.
"""


def _metrics() -> str:
    names = ", ".join(f"`{name}` ({better} is better)" for name, better in METRICS.items())
    return f"Metrics of gates and alerts: {names}.\n"


def _shown(examples: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Kind -> (path, text of one document without the comments before it)."""
    found: dict[str, tuple[str, str]] = {}
    for path, text in examples:
        for part in text.split("\n---\n"):
            for document in source.parse_text(part, path).documents:
                kind = document.data.get("kind") if isinstance(document.data, Mapping) else None
                if kind in KINDS and kind not in found:
                    found[kind] = (path, part.strip())
    return found


def _page(kind: str, example: tuple[str, str] | None) -> str:
    model = KINDS[kind].model
    parts = [f"# {kind}\n", model_doc(model) + "\n"]
    if example is not None:
        path, text = example
        parts.append(f"From `{path}`:\n\n```yaml\n{text}\n```\n")
    parts.append("## spec\n\n" + _table(model))
    seen: set[type[Base]] = {model}
    parts += _nested(model, "spec", seen)
    return "\n".join(parts)


def _nested(model: type[Base], path: str, seen: set[type[Base]]) -> list[str]:
    """Sections of the models below `model`, each at the first place where it stands."""
    parts = []
    for field in fields.fields(model).values():
        inner = fields.model_of(field.type)
        if inner is None or inner in seen or not fields.fields(inner):
            continue
        seen.add(inner)
        place = f"{path}.{field.name}"
        parts.append(f"## {place}\n\n{model_doc(inner)}\n\n{_table(inner)}")
        parts += _nested(inner, place, seen)
    return parts


def _table(model: type[Base]) -> str:
    known = fields.fields(model)
    chosen = [
        field.name
        for field in known.values()
        if issubclass(model, OneOf) and field.attribute in model.CHOICES
    ]
    head = f"Exactly one of {', '.join(f'`{name}`' for name in chosen)}.\n\n" if chosen else ""
    rows = [
        f"| `{field.name}` | {_cell(explain.facts(field))} | {_cell(field.doc)} |" for field in known.values()
    ]
    return head + "| field | type | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
