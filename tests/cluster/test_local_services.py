"""Services on the local cluster: real servers on loopback ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.harness import Home, body, home, step


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One supervisor for all cases that leave it alone."""
    with home(tmp_path_factory.mktemp("services")) as made:
        yield made


def service(name: str, port: int | None = None, **document: Any) -> dict[str, Any]:
    """A Service."""
    return body("Service", name, port=port, readyPath="/ready", step=step(name, "serve", "serve", **document))


def ask(url: str) -> dict[str, Any]:
    """What the service answers now, ready or not."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            found: dict[str, Any] = json.loads(response.read())
    except urllib.error.HTTPError as error:
        found = json.loads(error.read())
    return found


def ask_ready(url: str) -> dict[str, Any]:
    """The same, of a service that may be between two processes: empty when the connection breaks."""
    try:
        return ask(url)
    except OSError:
        return {}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_service_answers_on_the_port_it_asked_for(shared: Home) -> None:
    """The URL in the status is what `mlspec status` prints."""
    port = free_port()
    made = shared.create(service("asked", port, value=5))
    status = shared.ready("asked")
    assert status["url"] == f"http://127.0.0.1:{port}"
    assert ask(status["url"]) == {"value": 5, "pid": status["pid"]}
    shared.cluster.delete(made.key, made.uid)
    shared.wait(lambda: shared.cluster.get(made.key) is None)
    assert status["pid"] not in shared.alive()


def test_a_crashed_service_is_started_again_on_its_port(shared: Home) -> None:
    """Clients keep the address, and the status tells how often it happened."""
    shared.create(service("crashes", value=1))
    before = shared.ready("crashes")
    os.kill(before["pid"], signal.SIGKILL)
    shared.wait(lambda: shared.status("Service", "crashes")["phase"] == "degraded")
    assert shared.status("Service", "crashes")["message"] == "was killed by SIGKILL"
    after = shared.ready("crashes")
    assert after["pid"] != before["pid"]
    assert (after["url"], after["restarts"], after["message"]) == (before["url"], 1, "")
    assert ask(after["url"])["value"] == 1


def test_a_changed_document_is_followed_by_the_same_process(shared: Home) -> None:
    """A model swap must not cost a process."""
    shared.create(service("follows", value=1))
    before = shared.ready("follows")
    shared.cluster.apply(service("follows", value=2), {})
    shared.wait(lambda: ask(before["url"])["value"] == 2)
    assert ask(before["url"])["pid"] == before["pid"]
    shared.wait(lambda: shared.status("Service", "follows")["document"] != before["document"])


def test_a_change_and_its_revert_end_where_they_began(shared: Home) -> None:
    """The server of the first version is told the newest document, also after a second version was tried beside it."""
    shared.create(service("reverts", value=1))
    before = shared.ready("reverts")
    shared.cluster.apply(service("reverts", value=2, requirements=["pydantic>=2"], delay=60), {})
    shared.wait(lambda: len(list((shared.cluster.home / "tasks/service/reverts").glob("*.json"))) == 2)
    shared.cluster.apply(service("reverts", value=2, requirements=[]), {})
    shared.wait(lambda: ask_ready(before["url"]).get("value") == 2)
    assert shared.ready("reverts")["pid"] == before["pid"]


def test_a_cure_is_tried_at_once(shared: Home) -> None:
    """Who has mended the spec must not wait for the back-off of the mistake."""
    shared.create(service("cured", die=True))
    shared.wait(lambda: shared.status("Service", "cured").get("restarts", 0) >= 3)
    shared.cluster.apply(service("cured"), {})
    assert shared.ready("cured")["message"] == ""


def test_changed_requirements_replace_the_process_without_a_gap(shared: Home) -> None:
    """The new process is ready before the old one ends, so no request fails."""
    shared.create(service("replaced", value=1))
    before = shared.ready("replaced")
    shared.cluster.apply(service("replaced", value=2, requirements=["pydantic>=2"], delay=0.3), {})
    values = []
    while shared.status("Service", "replaced")["pid"] == before["pid"]:
        values.append(ask(before["url"])["value"])
        assert len(values) < 20000
    after = shared.ready("replaced")
    assert after["url"] == before["url"]
    assert after["restarts"] == 0
    assert set(values) <= {1, 2}
    shared.wait(lambda: before["pid"] not in shared.alive())
    assert ask(after["url"]) == {"value": 2, "pid": after["pid"]}


def test_a_successor_that_fails_leaves_the_old_process_alone(shared: Home) -> None:
    """A bad version never takes a good one down."""
    shared.create(service("kept", value=1))
    before = shared.ready("kept")
    shared.cluster.apply(service("kept", value=2, requirements=["pydantic>=2"], die=True), {})
    shared.wait(lambda: shared.status("Service", "kept")["phase"] == "degraded")
    message = shared.status("Service", "kept")["message"]
    assert message == "still the version before; the new one exited with code 7: cannot load the model"
    assert ask(before["url"]) == {"value": 1, "pid": before["pid"]}
    shared.cluster.apply(service("kept", value=3, requirements=["pydantic>=2"]), {})
    shared.wait(lambda: shared.status("Service", "kept")["pid"] != before["pid"])
    shared.wait(lambda: before["pid"] not in shared.alive())
    assert ask(shared.ready("kept")["url"])["value"] == 3


def test_a_changed_port_moves_the_service(shared: Home) -> None:
    """Also without a gap: the old address answers until the new one does."""
    first, second = free_port(), free_port()
    shared.create(service("moves", first, value=1))
    before = shared.ready("moves")
    shared.cluster.apply(service("moves", second, value=1), {})
    shared.wait(lambda: shared.status("Service", "moves")["port"] == second)
    assert ask(shared.ready("moves")["url"])["pid"] != before["pid"]
    shared.wait(lambda: before["pid"] not in shared.alive())


def test_a_service_that_never_starts_is_failed_and_says_why(shared: Home) -> None:
    """The reason is the program's own sentence."""
    made = shared.create(service("broken", die=True))
    shared.wait(lambda: shared.status("Service", "broken").get("phase") == "failed")
    assert shared.status("Service", "broken")["message"] == "exited with code 7: cannot load the model"
    shared.cluster.apply(service("broken"), {})
    shared.ready("broken")
    shared.cluster.delete(made.key, made.uid)


def test_a_service_is_not_ready_before_it_says_so(shared: Home) -> None:
    """Loading a model takes time; and a ready service that has lost it is degraded."""
    shared.create(service("late", delay=0.6))
    shared.wait(lambda: shared.status("Service", "late").get("phase") == "starting")
    assert shared.ready("late")["since"] > 0
    shared.cluster.apply(service("late", unready=True), {})
    shared.wait(lambda: shared.status("Service", "late")["phase"] == "degraded")
    assert shared.status("Service", "late")["message"] == "is alive but not ready"


def test_a_hanging_service_is_restarted(shared: Home) -> None:
    """A process that is alive but silent helps nobody."""
    shared.create(service("hangs"))
    before = shared.ready("hangs")
    os.kill(before["pid"], signal.SIGSTOP)
    after = shared.wait(
        lambda: (now := shared.status("Service", "hangs"))["pid"] not in (None, before["pid"]) and now
    )
    assert after["restarts"] == 1
    shared.ready("hangs")
    shared.wait(lambda: before["pid"] not in shared.alive())


def test_a_port_that_somebody_else_has_is_told(shared: Home) -> None:
    """With SO_REUSEPORT two services on one port would silently share its requests."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = int(other.getsockname()[1])
        shared.create(service("taken", port))
        expected = f"port {port} is taken by another program; choose another one or stop it"
        shared.wait(lambda: shared.status("Service", "taken").get("message") == expected)
    shared.ready("taken")
    shared.create(service("second", port))
    expected = f"port {port} belongs to Service taken; choose another one"
    shared.wait(lambda: shared.status("Service", "second").get("message") == expected)


def test_a_service_outlives_its_supervisor(tmp_path: Path) -> None:
    """`kill -9` of the supervisor: requests go on, the next supervisor adopts the process and watches it."""
    with home(tmp_path) as own:
        own.create(service("stays", value=1))
        before = own.ready("stays")
        own.kill()
        assert ask(before["url"])["pid"] == before["pid"]
        own.cluster.apply(service("stays", value=2), {})
        own.start()
        own.wait(lambda: ask(before["url"])["value"] == 2)
        assert own.alive() == [before["pid"]]
        assert own.ready("stays")["pid"] == before["pid"]
        os.kill(before["pid"], signal.SIGKILL)
        after = own.wait(
            lambda: (now := own.status("Service", "stays"))["pid"] not in (None, before["pid"]) and now
        )
        assert after["url"] == before["url"]


def test_a_service_that_died_with_its_supervisor_comes_back(tmp_path: Path) -> None:
    """After a reboot nothing of the old pids is believed."""
    with home(tmp_path) as own:
        own.create(service("reboot", value=1))
        before = own.ready("reboot")
        own.kill()
        os.kill(before["pid"], signal.SIGKILL)
        own.start()
        after = own.wait(
            lambda: (now := own.status("Service", "reboot"))["pid"] not in (None, before["pid"]) and now
        )
        assert after["url"] == before["url"]
        own.ready("reboot")
