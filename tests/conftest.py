"""Fixtures of the whole test session: the test bed's layers, each started once and shared.

Isolation is a namespace per test (`control_plane.namespace("...")`) and names of its own for what has no namespace, not a
server per test. A machine without Go skips these tests loudly: each with its reason, and one line at the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.bed import build, pool
from cluster.bed.controlplane import ControlPlane

SKIPPED = "no control plane: "


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


def _started(
    request: pytest.FixtureRequest, start: Callable[[Path], ControlPlane], folder: Path
) -> ControlPlane:
    """Start a layer with the capture of output off: the first start builds for minutes and says so."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        try:
            return start(folder)
        except build.Unavailable as missing:
            pytest.skip(f"{SKIPPED}{missing}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the bed, so that `-m "not controlplane"` leaves it out."""
    for item in items:
        if {"control_plane", "gpu_pool"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("controlplane")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it where everybody looks: a green run without the control plane proved less."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and SKIPPED in report.longrepr[2]
    ]
    if skipped:
        reason = skipped[0].longrepr[2].partition(SKIPPED)[2]
        terminalreporter.write_line(
            f"WARNING: {len(skipped)} tests of the real control plane did NOT run: {reason}",
            yellow=True,
            bold=True,
        )
