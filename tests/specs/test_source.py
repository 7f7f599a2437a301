"""The YAML dialect: what is read, what is refused, where a diagnostic points, and that no text crashes."""

from __future__ import annotations

import pytest

from mlspec import source
from mlspec.diagnostics import Problem

PLAIN = {
    "3e-4": 0.0003, "1e3": 1000.0, "-1.5E+2": -150.0, ".5": 0.5, "5.": 5.0, "0": 0, "-7": -7, "+7": 7, "0x1F": 31,
    "true": True, "True": True, "FALSE": False, "null": None, "~": None, "": None, "None": "None",
    "1.2.3": "1.2.3", "1.7.*": "1.7.*", "0.1%": "0.1%", "3h": "3h", "4Gi": "4Gi", "a:b": "a:b", "80:80": "80:80",
    "00:30": "00:30", "NaN": "NaN", "nope": "nope", "--lr": "--lr", "1_a": "1_a", "2013-W10": "2013-W10",
}  # fmt: skip
AMBIGUOUS = [
    "y",
    "n",
    "Y",
    "N",
    "yes",
    "Yes",
    "YES",
    "no",
    "NO",
    "on",
    "On",
    "OFF",
    "off",
    "017",
    "-017",
    "08",
    "007",
    "0o17",
    "0b1",
    "0b1_0",
    "0x_1",
    "10_000",
    "1_0.5",
    "1:30",
    "190:20:30.15",
    "2013-01-31",
    "2013-1-1",
    "2013-01-31T10:00:00Z",
    ".inf",
    "-.INF",
    ".nan",
    "1e999",
    "99999999999999999999",
]


@pytest.mark.parametrize("text", PLAIN, ids=repr)
def test_plain_scalars_are_read_as_yaml_1_2(text: str) -> None:
    """PyYAML reads 3e-4 as a string, which trains with the wrong learning rate or not at all."""
    read = source.parse_text(f"a: {text}\n", "f")
    assert read.diagnostics == ()
    value = read.documents[0].data["a"]
    assert (value, type(value)) == (PLAIN[text], type(PLAIN[text]))


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_scalars_that_tools_read_differently_are_errors_with_a_fix(text: str) -> None:
    """kubectl and mlspec must never see two different specs in one file."""
    (found,) = source.parse_text(f"a: {text}\n", "f").diagnostics
    assert (found.code, found.mark.line, found.mark.column, found.mark.length) == (
        "ambiguous-scalar",
        1,
        4,
        len(text),
    )
    fixed = source.fixed(f"a: {text}\n")
    assert source.parse_text(fixed, "f").diagnostics == ()


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_quotes_make_any_scalar_text(text: str) -> None:
    """The fix that every hint offers has to work."""
    for quoted in (f"'{text}'", f'"{text}"'):
        read = source.parse_text(f"a: {quoted}\n", "f")
        assert read.diagnostics == ()
        assert read.documents[0].data == {"a": text}


def test_ambiguous_keys_are_errors_and_fixed_too() -> None:
    """kubectl turns the key `on` into `true`."""
    (found,) = source.parse_text("on: [a]\n", "f").diagnostics
    assert found.code == "ambiguous-scalar"
    assert source.fixed("on: [a] # why\n") == '"on": [a] # why\n'


def test_fix_changes_nothing_else() -> None:
    """Comments, order, quotes, line ends and blank lines belong to the author."""
    text = "# top\r\na:   yes   # keep\r\n\r\nb: {c: 10_000, 'd': \"no\"}\r\n---\r\ne: [ 017,2013-01-01 ]\r\n"
    expected = '# top\r\na:   "yes"   # keep\r\n\r\nb: {c: 10000, \'d\': "no"}\r\n---\r\ne: [ "017","2013-01-01" ]\r\n'
    assert source.fixed(text) == expected


def test_numbers_as_keys_are_text() -> None:
    """JSON has no other keys, and kubectl reads them so."""
    assert source.parse_text("1: a\ntrue: b\n", "f").documents[0].data == {"1": "a", "true": "b"}
    assert [one.code for one in source.parse_text("1.0: a\n", "f").diagnostics] == ["yaml-key"]


def test_documents_have_their_first_line() -> None:
    """Status and plans name the line that a resource came from."""
    read = source.parse_text("# c\n\na: 1\n---\n# only a comment\n---\n\nb: 2\n...\n---\nc: 3\n", "f")
    assert [(one.index, one.line, one.data) for one in read.documents] == [
        (0, 3, {"a": 1}),
        (1, 8, {"b": 2}),
        (2, 11, {"c": 3}),
    ]


def test_merge_keys_follow_their_rules() -> None:
    """Own keys win, earlier maps win over later ones, and the merge key itself disappears."""
    text = "a: &a {x: 1, z: 1}\nb: &b {x: 2, q: 2}\nc:\n  <<: [*a, *b]\n  z: 9\n"
    assert source.parse_text(text, "f").documents[0].data["c"] == {"z": 9, "x": 1, "q": 2}
    (document,) = source.parse_text(text, "f").documents
    assert source.locate(document, ("c", "q")).line == 2


def test_a_syntax_error_costs_only_its_document() -> None:
    """One typing error must not hide the mistakes of all other resources of the file."""
    read = source.parse_text("kind: A\nmetadata: {name: one}\nx: [\n---\nb: yes\n---\nc: 3\n", "f")
    assert [one.data for one in read.documents] == [{"b": True}, {"c": 3}]
    assert [one.line for one in read.documents] == [5, 7]
    assert read.unreadable == (source.Declared("A", "one"),)
    assert [(one.code, one.mark.line) for one in read.diagnostics] == [
        ("yaml-syntax", 3),
        ("ambiguous-scalar", 5),
    ]
    assert source.locate(read.documents[1], ("c",)).line == 7


def test_windows_files_and_byte_order_marks_are_read() -> None:
    """Editors on Windows write both."""
    text, problems = source.decode("\ufeffa: 1\r\nb: no\r\n".encode(), "f")
    assert problems == []
    read = source.parse_text(text, "f")
    assert read.documents[0].data == {"a": 1, "b": False}
    assert (read.diagnostics[0].mark.line, read.diagnostics[0].mark.column) == (2, 4)
    assert source.decode("a: ü".encode("utf-16"), "f") == ("a: ü", [])


@pytest.mark.parametrize(
    ("data", "code", "line", "column"),
    [
        (b"a: 1\nb: \xff\n", "encoding", 2, 4),
        (b"a: 1\nb: x\x00\n", "encoding", 2, 5),
        (b"a: \x1b[31m\n", "encoding", 1, 4),
        (b"a:\n\t- b\n", "yaml-syntax", 2, 1),
        (b"a: *nobody\n", "yaml-syntax", 1, 4),
        (b"a: !custom x\n", "yaml-tag", 1, 4),
        (b"a: 1\na: 2\n", "duplicate-key", 2, 1),
        (b"? {a: 1}\n: b\n", "yaml-key", 1, 3),
        (b"a: @x\n", "yaml-syntax", 1, 4),
        (b"x" * (4 * 2**20 + 1), "too-large", 1, 1),
    ],
)
def test_bad_bytes_and_bad_yaml_have_a_place(data: bytes, code: str, line: int, column: int) -> None:
    """Where an editor shows nothing strange, only the column helps."""
    text, problems = source.decode(data, "f")
    found = problems or [*source.parse_text(text, "f").diagnostics]
    assert [(one.code, one.mark.line, one.mark.column) for one in found] == [(code, line, column)]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "{a: " * 50_000,
        "- " * 100_000,
        "? " * 100_000,
        "\n".join(" " * n + "a:" for n in range(2_000)),
        "a: &a [*a]",
    ],
    ids=["flow", "maps", "dashes", "questions", "indent", "alias-loop"],
)
def test_deep_nesting_is_refused_before_any_stack_overflows(text: str) -> None:
    """libyaml's composer recurses in C: without the check these end the process."""
    assert {one.code for one in source.parse_text(text, "f").diagnostics} <= {"too-deep", "yaml-syntax"}
    assert source.parse_text(text, "f").diagnostics


def test_aliases_cannot_explode() -> None:
    """Nine lines that expand to a billion entries."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert [one.code for one in source.parse_text("\n".join(lines), "f").diagnostics] == ["alias-budget"]


def test_a_missing_field_points_at_its_parent() -> None:
    """There is nothing to point at where something is missing, but the eye must land beside it."""
    (document,) = source.parse_text("kind: Dataset\nspec:\n  source:\n    csv: a\n", "f").documents
    assert str(source.locate(document, ("spec", "source", "sql", "query"))) == "f:3:3"
    assert str(source.locate(document, ("spec", "source", "csv"))) == "f:4:10"
    assert str(source.locate(document, ("spec", "source", "csv"), on_key=True)) == "f:4:5"
    assert str(source.place(document, Problem("x", "y")).mark) == "f:1:7"
