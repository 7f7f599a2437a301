"""The contract over the in-memory and the local cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.contract import Contract, key, record
from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.clusters.local.cluster import LocalCluster
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.state import Table


class TestMemory(Contract):
    """In dictionaries."""

    @pytest.fixture
    def cluster(self) -> MemoryCluster:
        return MemoryCluster()

    def test_a_test_plays_the_supervisor(self, cluster: MemoryCluster) -> None:
        """The reconcile tests end runs by hand; object and history must agree."""
        run = key("r", "Run")
        body = {
            "apiVersion": run.api_version,
            "kind": "Run",
            "metadata": {"name": "r"},
            "spec": {"steps": []},
        }
        cluster.create(body, {})
        cluster.succeed("r", {"train": {"auc": 0.7}})
        found = cluster.get(run)
        assert found is not None
        assert found.status == {"phase": "succeeded", "results": {"train": {"auc": 0.7}}, "message": ""}
        assert cluster.runs()["r"].results == {"train": {"auc": 0.7}}


class TestLocal(Contract):
    """In SQLite."""

    @pytest.fixture
    def cluster(self, tmp_path: Path) -> Iterator[LocalCluster]:
        made = LocalCluster(tmp_path / "home")
        yield made
        made.close()

    def test_another_process_sees_the_same(self, cluster: LocalCluster) -> None:
        """The command line, the controller and the supervisor share the store."""
        script = (
            "import sys, pathlib\n"
            "from mlspec_reconciler.clusters.local.cluster import LocalCluster\n"
            "cluster = LocalCluster(pathlib.Path(sys.argv[1]))\n"
            "for number in range(50):\n"
            "    cluster.apply({'apiVersion': 'local.mlspec.dev/v1', 'kind': 'Record',"
            " 'metadata': {'name': sys.argv[2]}, 'spec': {'data': {'n': number}}}, {})\n"
            "print(cluster.identity)\n"
        )
        changes = cluster.watch(20.0)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(cluster.home), name], stdout=subprocess.PIPE, text=True
            )
            for name in ("a", "b", "c")
        ]
        assert {next(changes), next(changes), next(changes)} <= {key("a"), key("b"), key("c")}
        assert {writer.communicate()[0].strip() for writer in writers} == {cluster.identity}
        assert {one.body["spec"]["data"]["n"] for one in cluster.list()} == {49}

    def test_what_is_not_a_store_is_refused_with_its_path(self, tmp_path: Path) -> None:
        """A damaged file must not look like an empty cluster."""
        (tmp_path / "state.db").write_text("this is no database, but long enough to be looked at " * 30)
        with pytest.raises(Unavailable, match=r"cannot open .*state\.db"):
            LocalCluster(tmp_path)

    def test_a_killed_writer_leaves_all_or_nothing(self, cluster: LocalCluster) -> None:
        """`kill -9` between two writes of one transaction."""
        script = (
            "import os, sys, pathlib, signal\n"
            "from mlspec_reconciler.state import Put, Table\n"
            "from mlspec_reconciler.clusters.local.cluster import LocalCluster\n"
            "cluster = LocalCluster(pathlib.Path(sys.argv[1]))\n"
            "with cluster.store.write():\n"
            "    cluster.state.commit(cluster.state.take('a'), [Put(Table.MARKS, 'half', {}, 0)])\n"
            "    cluster.create({'apiVersion': 'a/v1', 'kind': 'Record', 'metadata': {'name': 'half'}, 'spec': {}}, {})\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(cluster.home)], check=False)
        assert done.returncode == -9
        assert cluster.state.read().get(Table.MARKS, {}) == {}
        assert list(cluster.list()) == []
        cluster.create(record("after"), {})
