"""Who drives: a command that applies, or the controller of this machine. Never both by turns."""

from __future__ import annotations

from pathlib import Path

from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.drivers import forever
from mlspec_reconciler.drivers.lock import driven, driving, exclusive
from mlspec_reconciler.source import Revision
from mlspec_reconciler.step import Memory
from plan.playing import wanted

SPECS = """
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: rows}
spec: {source: {function: "load.py:rows"}}
"""


class Fixed:
    """One revision for ever."""

    def __init__(self, revision: Revision) -> None:
        self.revision = revision

    def newest(self) -> Revision | None:
        return self.revision


def test_the_controller_makes_no_step_while_a_command_drives(tmp_path: Path) -> None:
    """Whoever applies is told what was done; a controller that is faster would do it in silence."""
    (tmp_path / "load.py").write_text("def rows():\n    return []\n")
    (tmp_path / "specs.yaml").write_text(SPECS)
    revision = Revision("a", wanted(tmp_path))
    cluster, lock = MemoryCluster(), tmp_path / "reconcile.lock"
    arguments = (revision, Fixed(revision), cluster, cluster.state, lock, Memory(), "controller")
    with driving(lock), driving(lock):
        assert forever._step(*arguments) is None
        assert list(cluster.list()) == []
        with exclusive(lock):
            pass  # other commands go on
    assert not driven(lock)
    done = forever._step(*arguments)
    assert done is not None
    assert [one.write.key.kind for one in done.outcomes] == ["Run"]


def test_a_revision_that_is_not_the_newest_any_more_is_not_driven(tmp_path: Path) -> None:
    """Between the look and the lock somebody may have applied another one."""
    (tmp_path / "load.py").write_text("def rows():\n    return []\n")
    (tmp_path / "specs.yaml").write_text(SPECS)
    old, new = Revision("a", wanted(tmp_path)), Revision("b", wanted(tmp_path))
    cluster, lock = MemoryCluster(), tmp_path / "reconcile.lock"
    assert forever._step(old, Fixed(new), cluster, cluster.state, lock, Memory(), "controller") is None
    assert list(cluster.list()) == []
