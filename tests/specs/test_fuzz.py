"""No text ends in a traceback, and every diagnostic stands inside of its file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mlspec import report, source
from mlspec.project import build

VALID = (Path(__file__).parent / "valid/everything.yaml").read_text()
DOCUMENTS = [one.data for one in source.parse_text(VALID, "valid").documents]
YAMLISH = st.text(
    st.sampled_from([*list("abcdon:{}[],-?!&*#|>'\"%@` \t\n\r0123456789.~=<_"), "\ufeff", "\x85", "é", "😀"]),
    max_size=80,
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def check(text: str) -> None:
    built = build({"f.yaml": text})
    lines = source.LINE_BREAK.split(text)
    for one in built.diagnostics:
        assert 1 <= one.mark.line <= len(lines)
        assert 1 <= one.mark.column <= len(lines[one.mark.line - 1]) + 1
        assert one.message
    for form in report.FORMATS.values():
        assert form(built.diagnostics, {"f.yaml": text}) or not built.diagnostics
    assert (built.project is None) == any(one.severity == "error" for one in built.diagnostics)


@settings(max_examples=400, deadline=None)
@given(YAMLISH)
def test_any_text(text: str) -> None:
    """The words of YAML in any order."""
    check(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.binary(max_size=60))
def test_any_unicode_and_any_bytes(text: str, data: bytes) -> None:
    """Surrogates, controls, broken encodings."""
    check(text)
    decoded, problems = source.decode(data, "f")
    assert problems or isinstance(decoded, str)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_specs(data: st.DataObject) -> None:
    """A valid document with one value replaced, removed or added anywhere: the shapes that validators forget."""
    document = copy.deepcopy(data.draw(st.sampled_from(DOCUMENTS)))
    node: Any = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 3)):
            node = node[key]
            continue
        break
    match data.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            node[key] = data.draw(VALUES)
        case "remove":
            del node[key]
        case _ if isinstance(node, dict):
            node[data.draw(st.text(max_size=8))] = data.draw(VALUES)
        case _:
            node.append(data.draw(VALUES))
    others = [one for one in DOCUMENTS if one["metadata"]["name"] != document.get("metadata")]
    check("---\n".join(source.yaml_text(one) for one in [document, *others]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(VALID)), st.integers(0, 40), YAMLISH)
def test_damaged_texts(start: int, length: int, inserted: str) -> None:
    """A file while it is being typed."""
    check(VALID[:start] + inserted + VALID[start + length :])
