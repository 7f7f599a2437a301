"""The checkout: what the commit has and the working tree has not is no wish to delete; and which files git does not version.

Real repositories in temporary folders, in the states in which pipelines and people leave them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlspec.manifest import digest
from mlspec_reconciler import checkout, files, guards, workspace
from mlspec_reconciler.checkout import Missing
from mlspec_reconciler.clusters.memory import MemoryCluster
from plan.playing import Script, settle
from stepping import look

SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: NAME}
spec: {source: {function: "load.py:rows", parameters: {name: NAME}}}
"""
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def git(folder: Path, *arguments: str) -> str:
    """Run git, without the configuration of whoever runs the tests."""
    options = ["-c", "protocol.file.allow=always", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    variables = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", *options, "-C", str(folder), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()


def repository(folder: Path, *names: str) -> Path:
    """A repository with a commit of specs by these names (`b` is the file `b.yaml`), and a note."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in names:
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SPEC.replace("NAME", path.stem))
    (folder / "load.py").write_text("def rows(name):\n    return []\n")
    (folder / "notes.md").write_text("")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "Begin")
    return folder


def lacks(root: Path) -> list[str]:
    """Paths that are missing from a project, as apply would ask."""
    texts, _ = files.read([root], root)
    return [one.path for one in checkout.missing(root, texts)]


# --- what is missing


def sparse(root: Path) -> tuple[list[str], str]:
    git(root, "sparse-checkout", "set", "--no-cone", "/*", "!team")
    return ["team/c.yaml"], "git sparse-checkout disable"


def cone(root: Path) -> tuple[list[str], str]:
    git(root, "sparse-checkout", "set", "--cone", "--sparse-index")
    return ["team/c.yaml"], "git sparse-checkout disable"


def partial_clone(root: Path) -> tuple[list[str], str]:
    origin = root.with_name("origin")
    shutil.move(root, origin)
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(origin.parent, "clone", "--quiet", "--filter=blob:none", "--sparse", f"file://{origin}", str(root))
    return ["team/c.yaml"], "git sparse-checkout disable"


def no_checkout(root: Path) -> tuple[list[str], str]:
    origin = root.with_name("origin")
    shutil.move(root, origin)
    git(origin.parent, "clone", "--quiet", "--no-checkout", str(origin), str(root))
    shutil.copy(origin / "a.yaml", root)
    return ["b.yaml", "team/c.yaml", "load.py", "notes.md"], "git checkout HEAD -- ."


def deleted(root: Path) -> tuple[list[str], str]:
    (root / "b.yaml").unlink()
    return ["b.yaml"], "git restore b.yaml, or commit the deletion"


def folder_deleted(root: Path) -> tuple[list[str], str]:
    shutil.rmtree(root / "team")
    (root / "notes.md").unlink()
    return ["team/c.yaml", "notes.md"], "git restore FILE, or commit the deletion"


def hidden_from_git(root: Path) -> tuple[list[str], str]:
    git(root, "update-index", "--skip-worktree", "b.yaml")
    (root / "b.yaml").unlink()
    return ["b.yaml"], "git update-index --no-skip-worktree b.yaml && git restore b.yaml"


def assumed_unchanged(root: Path) -> tuple[list[str], str]:
    git(root, "update-index", "--assume-unchanged", "b.yaml")
    (root / "b.yaml").unlink()
    return ["b.yaml"], "git restore b.yaml, or commit the deletion"


def pointer_of_lfs(root: Path) -> tuple[list[str], str]:
    (root / "b.yaml").write_text(POINTER)
    return ["b.yaml"], "git lfs pull"


def with_submodule(root: Path, name: str = "shared") -> Path:
    """Add a submodule with a spec; returns the repository that it comes from."""
    other = repository(root.with_name(f"origin-of-{name}"), "s")
    git(root, "submodule", "add", "--quiet", str(other), name)
    git(root, "commit", "--quiet", "--message", "Share")
    return other


def submodule_never_initialised(root: Path) -> tuple[list[str], str]:
    with_submodule(root)
    origin = root.with_name("origin")
    shutil.move(root, origin)
    git(origin.parent, "clone", "--quiet", str(origin), str(root))
    return ["shared"], "git submodule update --init --recursive"


def submodule_taken_away(root: Path) -> tuple[list[str], str]:
    with_submodule(root)
    git(root, "submodule", "deinit", "--force", "--quiet", "shared")
    return ["shared"], "git submodule update --init --recursive"


def submodule_of_a_submodule(root: Path) -> tuple[list[str], str]:
    other = with_submodule(root)
    with_submodule(other, "deep")
    git(root / "shared", "pull", "--quiet")
    git(root, "commit", "--quiet", "--all", "--message", "Update")
    return ["shared/deep"], "git submodule update --init --recursive"


def submodule_without_a_file(root: Path) -> tuple[list[str], str]:
    with_submodule(root)
    (root / "shared/s.yaml").unlink()
    return ["shared/s.yaml"], "git restore shared/s.yaml, or commit the deletion"


def submodule_left_behind(root: Path) -> tuple[list[str], str]:
    """`git pull` without `git submodule update`."""
    other = with_submodule(root)
    (other / "new.yaml").write_text(SPEC.replace("NAME", "new"))
    git(other, "add", ".")
    git(other, "commit", "--quiet", "--message", "More")
    git(root / "shared", "pull", "--quiet")
    git(root, "commit", "--quiet", "--all", "--message", "Update")
    git(root / "shared", "checkout", "--quiet", "HEAD~1")
    return ["shared/new.yaml"], "git submodule update --init --recursive"


def submodule_whose_commit_is_not_here(root: Path) -> tuple[list[str], str]:
    with_submodule(root)
    git(root, "update-index", "--cacheinfo", f"160000,{'1' * 40},shared")
    git(root, "commit", "--quiet", "--message", "Update")
    return ["shared"], "git submodule update --init --recursive"


STATES: list[Callable[[Path], tuple[list[str], str]]] = [
    sparse,
    cone,
    partial_clone,
    no_checkout,
    deleted,
    folder_deleted,
    hidden_from_git,
    assumed_unchanged,
    pointer_of_lfs,
    submodule_never_initialised,
    submodule_taken_away,
    submodule_of_a_submodule,
    submodule_without_a_file,
    submodule_left_behind,
    submodule_whose_commit_is_not_here,
]


@pytest.mark.parametrize("state", STATES, ids=lambda one: one.__name__)
def test_what_an_incomplete_checkout_lacks(
    tmp_path: Path, state: Callable[[Path], tuple[list[str], str]]
) -> None:
    """Specs first, each with the command that gets it."""
    root = repository(tmp_path / "project", "a", "b", "team/c")
    expected, way_out = state(root)
    texts, _ = files.read([root], root)
    missing = checkout.missing(root, texts)
    assert [one.path for one in missing] == expected
    assert {one.command() if len(missing) == 1 else one.way_out for one in missing} == {way_out}


# --- what is not


def complete(root: Path) -> None:
    pass


def committed_deletion(root: Path) -> None:
    git(root, "rm", "--quiet", "b.yaml")
    git(root, "commit", "--quiet", "--message", "Remove b")


def staged_deletion(root: Path) -> None:
    git(root, "rm", "--quiet", "b.yaml")


def forgotten_then_deleted(root: Path) -> None:
    git(root, "rm", "--quiet", "--cached", "b.yaml")
    (root / "b.yaml").unlink()


def renamed(root: Path) -> None:
    git(root, "mv", "b.yaml", "z.yaml")


def added_and_taken_back(root: Path) -> None:
    (root / "new.yaml").write_text("")
    git(root, "add", "new.yaml")
    (root / "new.yaml").unlink()


def edited(root: Path) -> None:
    (root / "b.yaml").write_text("# nothing any more\n")


def replaced_by_a_link(root: Path) -> None:
    (root / "b.yaml").unlink()
    (root / "b.yaml").symlink_to("/nowhere")


def submodule_removed(root: Path) -> None:
    with_submodule(root)
    git(root, "rm", "--quiet", "shared")


def submodule_complete(root: Path) -> None:
    with_submodule(root)


MEANT = [
    complete,
    committed_deletion,
    staged_deletion,
    forgotten_then_deleted,
    renamed,
    added_and_taken_back,
    edited,
    replaced_by_a_link,
    submodule_removed,
    submodule_complete,
]


@pytest.mark.parametrize("state", MEANT, ids=lambda one: one.__name__)
def test_what_was_meant_is_not_missing(tmp_path: Path, state: Callable[[Path], None]) -> None:
    """A deletion that was committed or staged, and everything that git would show as an edit."""
    root = repository(tmp_path / "project", "a", "b", "team/c")
    state(root)
    assert lacks(root) == []


def test_a_linked_worktree_has_an_index_of_its_own(tmp_path: Path) -> None:
    """`git worktree add`: pipelines and agents work in such folders, where `.git` is a file."""
    main = repository(tmp_path / "main", "a", "b")
    git(main, "worktree", "add", "--quiet", str(tmp_path / "linked"))
    (main / "a.yaml").unlink()
    assert lacks(tmp_path / "linked") == []
    (tmp_path / "linked/b.yaml").unlink()
    assert lacks(tmp_path / "linked") == ["b.yaml"]


def test_only_the_folder_of_the_project_counts(tmp_path: Path) -> None:
    """A sparse checkout of a large repository is complete when it has the whole project."""
    root = repository(tmp_path / "everything", "a", "b", "team/c", "team/d")
    git(root, "sparse-checkout", "set", "--no-cone", "/team/")
    assert lacks(root / "team") == []
    (root / "team/d.yaml").unlink()
    assert lacks(root / "team") == ["d.yaml"]


def test_outside_of_git_nothing_is_missing(tmp_path: Path) -> None:
    """The folder is what it is, also when it is in a repository that has no commit yet."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "a.yaml").write_text(POINTER)
    assert lacks(root) == []
    assert (checkout.commit(root), checkout.source(root), checkout.edited(root)) == ("", {}, False)
    git(root, "init", "--quiet")
    (root / "a.yaml").write_text(SPEC)
    assert lacks(root) == []


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    """Git must take them literally, spaces and line breaks too."""
    root = repository(tmp_path / "project", "a", ":(top)x", "b*", "with space", "Zürich", "two\nlines")
    for name in (":(top)x", "b*", "with space", "Zürich", "two\nlines"):
        (root / f"{name}.yaml").unlink()
    assert lacks(root) == [":(top)x.yaml", "Zürich.yaml", "b*.yaml", "two\nlines.yaml", "with space.yaml"]
    assert Missing("with space.yaml").command().startswith("git restore 'with space.yaml'")


def copied_worktree(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.rmtree(root / ".git")
    (root / ".git").write_text("gitdir: /nowhere/.git/worktrees/x\n")
    return "not a git repository: /nowhere/.git/worktrees/x"


def somebody_elses(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    return f"detected dubious ownership in repository at '{root}'"


def no_git(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", str(root))
    return "git cannot be run: No such file or directory"


def damaged(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (root / ".git/index").write_bytes(b"DIRC")
    return "index file smaller than expected"


def without_a_head(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (root / ".git/HEAD").write_text("")
    return "not a git repository"


UNREADABLE = [copied_worktree, somebody_elses, no_git, damaged, without_a_head]


@pytest.mark.parametrize("state", UNREADABLE, ids=lambda one: one.__name__)
def test_a_repository_that_git_cannot_read_is_not_complete(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: Callable[[Path, pytest.MonkeyPatch], str],
) -> None:
    """Pipelines run as other users and without git; what is unknown is never taken for absent."""
    root = repository(tmp_path / "project", "a", "b")
    reason = state(root, monkeypatch)
    with pytest.raises(checkout.Unknown) as caught:
        checkout.missing(root, {})
    assert reason in str(caught.value)


def test_asking_changes_nothing(tmp_path: Path) -> None:
    """Looking writes nothing: `git status` would refresh the index of the user."""
    root = repository(tmp_path / "project", "a", "b")
    os.utime(root / "a.yaml", (1, 1))
    os.utime(root / "b.yaml", (1, 1))
    before = {path: path.read_bytes() for path in (root / ".git").rglob("*") if path.is_file()}
    assert not checkout.edited(root)
    assert checkout.source(root)["revision"] == git(root, "rev-parse", "HEAD")
    assert lacks(root) == []
    assert checkout.ignored(root, [root / "a.yaml"]) == set()
    assert {path: path.read_bytes() for path in (root / ".git").rglob("*") if path.is_file()} == before


# --- what an apply makes of it


def refused(root: Path, cluster: MemoryCluster) -> list[str]:
    """Why an apply of the project in `root` would stop."""
    opened = workspace.open_project(root, None)
    assert opened.wanted is not None, opened.diagnostics
    seen = look(opened.wanted, cluster)
    return [str(one) for one in guards.refusals(opened, seen, cluster) if one.code == "partial-checkout"]


@pytest.fixture
def applied(tmp_path: Path) -> tuple[Path, MemoryCluster]:
    """A project that is applied, with a submodule."""
    root = repository(tmp_path / "project", "a", "b", "team/c", "team/d", "team/e", "team/f")
    for name in "cdef":
        path = root / f"team/{name}.yaml"
        path.write_text(path.read_text().replace("load.py", "l.py"))
    (root / "team/l.py").write_text("def rows(name):\n    return []\n")
    git(root, "add", ".")
    with_submodule(root)
    cluster = MemoryCluster()
    opened = workspace.open_project(root, None)
    assert opened.wanted is not None, opened.diagnostics
    settle(opened.wanted, cluster, Script())
    return root, cluster


def test_an_incomplete_checkout_deletes_nothing(applied: tuple[Path, MemoryCluster]) -> None:
    """A few names, the number of the others, the way out, and the option for who means it."""
    root, cluster = applied
    git(root, "submodule", "deinit", "--force", "--quiet", "shared")
    shutil.rmtree(root / "team")
    assert refused(root, cluster) == [
        "error[partial-checkout]: team/c.yaml, team/d.yaml, team/e.yaml and 2 more are in the commit, but not in the "
        "working tree, so a deletion may not be meant; for a complete checkout: git restore FILE, or commit the deletion\n"
        "  if this is meant: mlspec apply --allow-deletes",
        "error[partial-checkout]: shared is in the commit, but its submodule is not checked out, so a deletion may not be "
        "meant; for a complete checkout: git submodule update --init --recursive\n"
        "  if this is meant: mlspec apply --allow-deletes",
    ]


def test_any_deletion_is_refused_while_something_is_missing(applied: tuple[Path, MemoryCluster]) -> None:
    """The one that is asked for may well be meant, but this tree is not what the commit says."""
    root, cluster = applied
    (root / "b.yaml").write_text("# nothing\n")
    assert refused(root, cluster) == []
    (root / "notes.md").unlink()
    assert "notes.md is in the commit" in refused(root, cluster)[0]
    git(root, "checkout", "b.yaml")
    assert refused(root, cluster) == []


@pytest.mark.parametrize("how", ["rm", "commit", "submodule"])
def test_a_deletion_in_git_goes_through(applied: tuple[Path, MemoryCluster], how: str) -> None:
    """Staged or committed, it is what git says."""
    root, cluster = applied
    git(root, "rm", "--quiet", "shared" if how == "submodule" else "b.yaml")
    if how == "commit":
        git(root, "commit", "--quiet", "--message", "Remove b")
    assert refused(root, cluster) == []


def test_a_repository_that_cannot_be_read_deletes_nothing(
    applied: tuple[Path, MemoryCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose user does not own the checkout."""
    root, cluster = applied
    (root / "b.yaml").write_text("# nothing\n")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert refused(root, cluster)[0].startswith(
        "error[partial-checkout]: whether the checkout is complete is not known: detected dubious ownership"
    )


@pytest.mark.parametrize("change", ["\r\n", "\ufeff", "utf-16"])
def test_another_checkout_of_the_same_commit_changes_nothing(
    applied: tuple[Path, MemoryCluster], change: str
) -> None:
    """Line endings and byte order marks of specs and code are those of a machine, not of the commit."""
    root, cluster = applied

    def revision() -> tuple[str, str]:
        opened = workspace.open_project(root, None)
        assert opened.wanted is not None, opened.diagnostics
        assert look(opened.wanted, cluster).plan.empty
        staged = workspace.stage(opened, cluster).record["revision"]
        return staged, digest(dict(opened.wanted.project.digests))

    before = revision()
    for path in [*root.rglob("*.yaml"), *root.rglob("*.py")]:
        text = path.read_text()
        if change == "utf-16" and path.suffix == ".yaml":
            path.write_bytes(text.encode("utf-16"))
        elif change != "utf-16":
            path.write_bytes((change + text if change == "\ufeff" else text.replace("\n", change)).encode())
    assert revision() == before


# --- what git does not version


def test_what_git_ignores_or_does_not_have(tmp_path: Path) -> None:
    """Such a file is the world's: a change of it is no commit, and no revert brings it back."""
    root = repository(tmp_path / "project", "a", "data/b")
    with_submodule(root)
    (root / ".gitignore").write_text("*.csv\n/cache/\n!kept.csv\n")
    (root / "shared/.gitignore").write_text("*.json\n")
    (root / "tracked.csv").write_text("")
    git(root, "add", "--force", "tracked.csv")
    for name in (
        "rows.csv",
        "kept.csv",
        "new.parquet",
        "data/rows.csv",
        "shared/x.csv",
        "shared/x.json",
        ":odd.csv",
    ):
        (root / name).write_text("")
    (root / "cache").mkdir()
    (root / "cache/x.parquet").write_text("")
    repository(root / "embedded", "e")
    (tmp_path / "beside.parquet").write_text("")
    (root / "link.parquet").symlink_to(tmp_path / "beside.parquet")
    (root / "inner.parquet").symlink_to(root / "new.parquet")
    (tmp_path / "way").symlink_to(root)

    theirs = ["rows.csv", "data/rows.csv", "cache/x.parquet", ":odd.csv", "shared/x.json", "link.parquet"]
    theirs += ["embedded/e.yaml", "../beside.parquet", "/etc/hosts", "cache", ".git/config", "absent.csv"]
    gits = [
        "a.yaml",
        "data/b.yaml",
        "tracked.csv",
        "kept.csv",
        "new.parquet",
        "shared/s.yaml",
        "shared/x.csv",
    ]
    gits += ["inner.parquet", "absent.parquet", ".", "../way/new.parquet"]
    paths = [Path(name) for name in [*theirs, *gits]]
    assert checkout.ignored(root, paths) == {Path(name) for name in theirs}
    assert checkout.ignored(root, [root / name for name in gits]) == set()
    assert checkout.ignored(root / "data", [Path("rows.csv"), Path("b.yaml"), Path("../a.yaml")]) == {
        Path("rows.csv")
    }
    assert checkout.ignored(root, []) == set()


def test_outside_of_git_the_folder_is_what_is_versioned(tmp_path: Path) -> None:
    """Then the project is its folder, and what lies elsewhere is the world's."""
    (tmp_path / "rows.csv").write_text("")
    assert checkout.ignored(tmp_path, [Path("rows.csv"), tmp_path / "rows.csv", Path("../x.csv")]) == {
        Path("../x.csv")
    }


def test_an_answer_that_git_cannot_give_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither versioned nor not."""
    root = repository(tmp_path / "project", "a")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(checkout.Unknown, match="dubious ownership"):
        checkout.ignored(root, [Path("a.yaml")])


def test_the_commit_and_its_source(tmp_path: Path) -> None:
    """What `status` and annotations say of a revision: no credentials, and edits are marked."""
    root = repository(tmp_path / "project", "a")
    git(root, "remote", "add", "origin", "https://user:token@example.org/team/ml.git")
    head = git(root, "rev-parse", "HEAD")
    assert checkout.commit(root) == f'{head[:7]} "Begin"'
    assert checkout.source(root) == {"revision": head, "repository": "https://example.org/team/ml.git"}
    (root / "a.yaml").write_text("# edited\n")
    assert checkout.source(root)["revision"] == f"{head}-edited"
