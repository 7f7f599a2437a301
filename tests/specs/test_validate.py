"""`mlspec validate` as a command: files, folders, stdin, forms of output, exit codes, the cache, its cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlspec_reconciler import cache
from mlspec_reconciler.commands.validate import command

GOOD = "apiVersion: mlspec.dev/v1alpha1\nkind: Dataset\nmetadata: {name: a}\nspec: {source: {csv: a.csv}}\n"
BAD = GOOD.replace("csv", "cvs", 1)
WARNING = GOOD.replace(
    "{source: {csv: a.csv}}", "{source: {csv: a.csv}, columns: {delay: {type: double}}, key: [delays]}"
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def validate(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(command, list(arguments), input=stdin, catch_exceptions=False)


def test_valid_specs_end_with_zero_and_the_next_step() -> None:
    """A green check says what it has checked."""
    Path("a.yaml").write_text(GOOD)
    result = validate()
    assert (result.exit_code, result.output) == (0, "1 resource valid. Next: mlspec plan\n")


def test_errors_of_all_files_end_with_one() -> None:
    """CI fails, and shows everything at once, in the order of the files."""
    Path("sub").mkdir()
    Path("b.yaml").write_text(BAD)
    Path("sub/a.yml").write_text(BAD.replace("name: a", "name: b"))
    result = validate()
    assert result.exit_code == 1
    assert [
        line
        for line in result.output.splitlines()
        if line.startswith("  b.yaml:") or line.startswith("  sub/")
    ] == [
        "  b.yaml:4:17",
        "  sub/a.yml:4:17",
    ]
    assert result.output.endswith("2 errors in 2 files.\n")


def test_hidden_and_ignored_folders_are_left_alone() -> None:
    """.mlspec holds copies of specs; a virtual environment holds other people's YAML."""
    for folder in (".mlspec", "node_modules", "drafts", "charts/templates"):
        Path(folder).mkdir(parents=True)
        Path(folder, "x.yaml").write_text(BAD)
    Path("a.yaml").write_text(GOOD)
    Path(".mlspecignore").write_text("# templates are no YAML\ndrafts/\ncharts/templates\n")
    assert validate().exit_code == 0


def test_specs_come_from_stdin() -> None:
    """`kustomize build . | mlspec validate -`"""
    assert validate("-", stdin=GOOD).exit_code == 0
    result = validate("-", stdin=BAD)
    assert result.exit_code == 1
    assert "  stdin:4:17\n" in result.output
    assert "is not UTF-8" in validate("-", stdin=b"a: \xff").output


def test_nothing_to_check_is_an_error() -> None:
    """An empty checkout must not pass for a valid one."""
    result = validate()
    assert result.exit_code == 1
    assert "error[no-specs]" in result.output
    assert "error[unreadable-file]" in validate("missing.yaml").output


def test_resources_of_other_tools_are_left_alone() -> None:
    """A repository holds Kubernetes manifests, kustomizations and charts beside the specs."""
    Path("a.yaml").write_text(
        GOOD + "---\napiVersion: v1\nkind: Service\nmetadata: {name: x}\n---\nkind: Service\n"
    )
    Path("kustomization.yaml").write_text("resources: [a.yaml]\n")
    Path("values.yaml").write_text("replicas: 2\nreleased: 2013-01-01\non: yes\n")
    Path("template.yaml").write_text("{{- if .Values.x }}\nkind: Deployment\n{{ end }}\n")
    Path("playbook.yaml").write_text("- hosts: all\n")
    assert validate().output == "1 resource valid; 6 of other tools left alone. Next: mlspec plan\n"


def test_warnings_fail_only_when_strict() -> None:
    """A team chooses when a warning blocks."""
    Path("a.yaml").write_text(WARNING)
    assert validate().exit_code == 0
    assert "1 warning in 1 file." in validate().output
    assert validate("--strict").exit_code == 1


def test_fix_rewrites_only_ambiguous_scalars() -> None:
    """The one mistake that a machine can mend without guessing."""
    text = GOOD.replace("csv: a.csv", "csv: 2013-01-01 # keep")
    Path("a.yaml").write_text(text.replace("}}", "\n}}"))
    assert validate().exit_code == 1
    result = validate("--fix")
    assert result.exit_code == 0
    assert "1 file rewritten." in result.output
    assert '"2013-01-01" # keep' in Path("a.yaml").read_text()


def test_json_has_every_field() -> None:
    """Editors and bots read this."""
    Path("a.yaml").write_text(BAD)
    document = json.loads(validate("--output", "json").output)
    (one,) = [one for one in document["diagnostics"] if one["code"] == "unknown-field"]
    assert one["path"] == "a.yaml"
    assert (one["line"], one["column"], one["length"], one["severity"]) == (4, 17, 3, "error")
    assert (document["version"], document["errors"], document["files"]) == (
        1,
        len(document["diagnostics"]),
        1,
    )


def test_github_annotations_are_escaped() -> None:
    """A comma or a percent sign in a path would cut the annotation."""
    Path("a,b%.yaml").write_text(BAD)
    line = validate("--output", "github").output.splitlines()[0]
    assert line.startswith(
        "::error file=a%2Cb%25.yaml,line=4,col=17,endColumn=20,title=unknown-field::unknown field"
    )


def test_sarif_is_sarif() -> None:
    """GitHub code scanning refuses a file with a missing property."""
    Path("ä b.yaml").write_text(BAD + "---\n" + WARNING.replace("name: a", "name: b"))
    document: dict[str, Any] = json.loads(validate("--output", "sarif").output)
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "%C3%A4%20b.yaml"
        assert place["region"]["endColumn"] > place["region"]["startColumn"] >= 1
    assert len(run["results"]) >= 2


def test_the_second_run_uses_the_verdict_and_an_edit_does_not() -> None:
    """A cache that can be stale is worse than none."""
    Path("a.yaml").write_text(BAD)
    first = validate()
    entries = list((cache.folder() / "verdicts").iterdir())
    assert len(entries) == 1
    document = json.loads(entries[0].read_text())
    document["diagnostics"][0]["message"] = "from the cache"
    entries[0].write_text(json.dumps(document))
    assert "from the cache" in validate().output
    assert "from the cache" not in validate("--no-cache").output
    Path("a.yaml").write_text(BAD + "# edit\n")
    assert validate().output == first.output


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"diagnostics": [1]}', "\x00" * 100, "[" * 100_000])
def test_a_damaged_cache_is_ignored(damage: str) -> None:
    """A full disk or a killed process leaves half a file."""
    Path("a.yaml").write_text(WARNING.replace("key: [delays]", 'checks: [{sql: "delays > 1"}]'))
    first = validate()
    for entry in [*(cache.folder() / "verdicts").iterdir(), cache.folder() / "expressions.json"]:
        entry.write_text(damage)
    assert validate().output == first.output


def test_an_unwritable_cache_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run with read-only homes."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    Path("a.yaml").write_text(GOOD)
    assert validate().exit_code == 0


def test_validate_imports_no_client_and_no_data_library() -> None:
    """It runs in pre-commit hooks and editors: every heavy import is felt on every save."""
    Path("a.yaml").write_text(GOOD)
    script = (
        "import sys, time\nfrom mlspec_reconciler.cli import main\nmain(['validate', '--no-cache'])\n"
        "heavy = {'kubernetes', 'duckdb', 'numpy', 'pandas', 'pyarrow', 'mlflow', 'sklearn', 'sqlglot', 'rich', 'jsonschema', 'ruamel'}\n"
        "print(sorted(heavy & set(sys.modules)), time.process_time())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].startswith("[]")
