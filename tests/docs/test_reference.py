"""The pages of docs/: the generated reference is that of the models, commands and links exist, examples are valid.

A page that names a command which does not exist costs its reader more than no page.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from mlspec import fields, project, reference
from mlspec.kind_table import KINDS
from mlspec_reconciler import cli
from mlspec_reconciler.commands import schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(path for path in DOCS.rglob("*.md") if "design" not in path.parts)]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
COMMAND = re.compile(r"(?<![\w./-])mlspec ([a-z][^`|\n#&;)]*)")
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)(?:#[^)]*)?\)")
ANCHORED = re.compile(r"\[[^\]]+\]\(([^)#]*)(?:#([^)]*))?\)")
YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def test_the_reference_is_that_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it lies after the first change of a field."""
    monkeypatch.chdir(ROOT)
    pages = reference.pages(schema._examples())
    for name, text in pages.items():
        assert (DOCS / "reference" / name).read_text() == text, f"{name}: run mlspec schema --write"
    assert {path.name for path in (DOCS / "reference").iterdir()} == set(pages)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_fields_and_an_example(kind: str) -> None:
    """A page without them would pass the test above."""
    text = (DOCS / "reference" / f"{kind.lower()}.md").read_text()
    assert re.search(rf"```yaml\n(.*\n)*kind: {kind}\n", text)
    for name, field in fields.fields(KINDS[kind].model).items():
        assert f"| `{name}` |" in text
        assert field.doc, f"{kind}.{name} has no docstring"


def commands(text: str) -> list[str]:
    """Every `mlspec COMMAND ...` of a page: in code blocks and in backticks."""
    blocks = re.findall(r"```(?:console|sh|yaml)\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    indented = re.findall(r"(?m)^    (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [found.strip() for part in [*blocks, *spans, *indented] for found in COMMAND.findall(part)]


def fault(line: str) -> str:
    """What is wrong with a command line; empty when every word of it exists."""
    name, *words = line.replace("$(", " ").split()
    if name not in cli.COMMANDS:
        return f"there is no command {name}"
    command = cli.group.get_command(click.Context(cli.group), name)
    assert command is not None
    options = {
        one: option for option in command.params if isinstance(option, click.Option) for one in option.opts
    }
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if not word.startswith("-") or word == "-":
            continue
        if word in ("--help", "-h"):
            continue
        if word not in options:
            return f"{name} has no option {word}"
        choice = options[word].type
        if isinstance(choice, click.Choice) and following not in choice.choices:
            return f"{word} cannot be {following}"
    return ""


@pytest.mark.parametrize("page", NAMES)
def test_commands_exist(page: str) -> None:
    """Names, options and choices are those of the command."""
    for line in commands((ROOT / page).read_text()):
        assert not fault(line), f"{line!r}: {fault(line)}"


def test_the_checker_of_commands_finds_faults() -> None:
    """It would prove nothing if it could not fail, or saw no command at all."""
    assert fault("appply --yes")
    assert fault("apply --force")
    assert fault("plan --output html")
    assert not fault("plan --output markdown --out plan.json")
    assert sum(len(commands(path.read_text())) for path in PAGES) > 40


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    """Relative links are files of this repository, and what follows a # is a heading of the page."""
    for link, anchor in ANCHORED.findall((ROOT / page).read_text()):
        if "://" in link:
            continue
        place = (ROOT / page).parent / link if link else ROOT / page
        assert place.exists(), link
        assert not anchor or anchor in anchors(place.read_text()), f"{link}#{anchor}"


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page, and the anchors that stand in it."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    named = re.findall(r'<a id="([^"]+)">', text)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles} | {*named}


@pytest.mark.parametrize(
    "page", [name for name in NAMES if "/how-to/" in name or name.endswith("tutorial.md")]
)
def test_specs_are_valid(page: str) -> None:
    """Blocks that are whole documents take the place of their namesakes in the example that the page is about, which stays valid."""
    text = (ROOT / page).read_text()
    example = "parcels" if "examples/parcels" in text else "flights"
    for block in YAML.findall(text):
        if not block.startswith("apiVersion: mlspec.dev/"):
            assert yaml.safe_load(block), block
            continue
        parts = block.split("\n---\n")
        named = [(one["kind"], one["metadata"]["name"]) for one in map(yaml.safe_load, parts)]
        for path in sorted((ROOT / "examples" / example).glob("*.yaml")):
            for part in path.read_text().split("\n---\n"):
                other = yaml.safe_load(part)
                if (other["kind"], other["metadata"]["name"]) not in named:
                    parts.append(part)
        built = project.build({"page.yaml": "\n---\n".join(parts)}, "page")
        assert not (wrong := [one for one in built.diagnostics if one.severity == "error"]), wrong


def test_the_table_of_contents_is_complete() -> None:
    """A page that nobody can find is not there."""
    linked = {
        (DOCS / link).resolve() for link in LINK.findall((DOCS / "index.md").read_text()) if "://" not in link
    }
    pages = {path for path in PAGES if path.parent.name != "reference" and path.name != "index.md"}
    assert {path.resolve() for path in pages} <= linked
    assert (DOCS / "reference/README.md").resolve() in linked
