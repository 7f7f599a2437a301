"""Fixtures of the whole test session: the real control plane (`control_plane`) is started once and shared.

Isolation is a namespace per test (`control_plane.namespace("...")`), not a server per test. A machine without Go skips
these tests loudly: each with its reason, and one line at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.bed import build
from cluster.bed.controlplane import ControlPlane

SKIPPED = "no control plane: "


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real API server, etcd, controller-manager and scheduler for the session (per worker under xdist)."""
    try:
        plane = ControlPlane.start(tmp_path_factory.mktemp("control-plane"))
    except build.Unavailable as missing:
        pytest.skip(f"{SKIPPED}{missing}")
    with plane:
        yield plane


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the control plane, so that `-m "not controlplane"` leaves it out."""
    for item in items:
        if "control_plane" in getattr(item, "fixturenames", ()):
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
