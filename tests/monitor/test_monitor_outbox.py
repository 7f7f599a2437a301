"""Notifications over real HTTP: retried, in order, at least once, and never the reason for a failed evaluation."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mlspec.kinds.receiver import ReceiverSpec
from mlspec_runtime.monitor import outbox
from mlspec_runtime.monitor.evaluate import evaluate
from mlspec_runtime.monitor.store import opened
from monitor.log_writer import World, wall


class Inbox:
    """A receiver on a free loopback port. `answers` are the status codes of the next requests, then 200."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[int, dict[str, str], dict[str, Any]]] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = inbox.answers.pop(0) if inbox.answers else 200
                inbox.got.append((status, dict(self.headers), body))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/alerts"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def keys(self) -> list[str]:
        """Keys of the messages that were taken, in order."""
        return [headers["Idempotency-Key"] for status, headers, _ in self.got if status == 200]


@pytest.fixture
def inbox():
    """A running receiver."""
    running = Inbox()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def store(tmp_path):
    """An empty state."""
    with opened(tmp_path / "state.sqlite") as one:
        yield one


def receiver(url: str, **more: Any) -> dict[str, ReceiverSpec]:
    """The receiver `oncall`."""
    return {"oncall": ReceiverSpec.model_validate({"webhook": {"url": url}, **more})}


def write(store, *keys: str) -> None:
    """Messages at time 0."""
    for key in keys:
        outbox.write(store, outbox.Message(key, "oncall", {"sentence": key}), 0.0)


def test_a_receiver_that_fails_first_gets_everything_in_order(store, inbox):
    """Two failures, then it works: nothing lost, nothing overtakes, the waits grow."""
    inbox.answers = [500, 503]
    write(store, "one", "two", "one")
    targets = receiver(inbox.url)
    for now in (0.0, 1.0, 2.0, 5.0, 6.0):
        outbox.deliver(store, targets, now)
    assert [status for status, _, _ in inbox.got] == [500, 503, 200, 200]
    assert inbox.keys() == ["one", "two"]
    assert [one["state"] for one in outbox.report(store)] == ["delivered", "delivered"]
    assert [one["attempts"] for one in outbox.report(store)] == [1, 3]


def test_a_dead_receiver_is_given_up_and_the_next_message_goes_on(store, inbox):
    """After `giveUpAfter` a message is marked as failed, with the reason, instead of blocking for ever."""
    inbox.answers = [500, 400]
    write(store, "old")
    targets = receiver(inbox.url, giveUpAfter="10s")
    outbox.deliver(store, targets, 0.0)
    outbox.write(store, outbox.Message("new", "oncall", {"sentence": "new"}), 19.0)
    outbox.deliver(store, targets, 20.0)
    newest, oldest = outbox.report(store)
    assert (oldest["state"], oldest["problem"]) == ("failed", "the receiver answered 400")
    assert newest["state"] == "delivered"


def test_nobody_listens_on_the_port(store, inbox):
    """A refused connection is a problem in words; the message waits."""
    inbox.server.shutdown()
    inbox.server.server_close()
    write(store, "one")
    outbox.deliver(store, receiver(inbox.url), 0.0)
    (one,) = outbox.report(store)
    assert one["state"] == "waiting"
    assert one["problem"].startswith("the receiver cannot be reached")


def test_a_redirect_is_no_delivery(store, inbox):
    """Following it would turn the POST into a GET without its body."""
    inbox.answers = [302]
    write(store, "one")
    outbox.deliver(store, receiver(inbox.url), 0.0)
    assert outbox.report(store)[0]["problem"] == "the receiver answered 302"


def test_secrets_come_from_the_environment_and_stay_out_of_the_report(store, inbox, monkeypatch):
    """The address of a webhook is a secret."""
    monkeypatch.setenv("HOOK", inbox.url + "?token=s3cret")
    monkeypatch.setenv("TOKEN", "t0ken")
    spec = {"webhook": {"url": {"env": "HOOK"}, "headers": {"Authorization": {"env": "TOKEN"}}}}
    targets = {"oncall": ReceiverSpec.model_validate(spec)}
    inbox.answers = [500]
    write(store, "one")
    outbox.deliver(store, targets, 0.0)
    monkeypatch.delenv("TOKEN")
    outbox.deliver(store, targets, 10.0)
    assert inbox.got[0][1]["Authorization"] == "t0ken"
    assert "s3cret" not in json.dumps(outbox.report(store))
    assert outbox.report(store)[0]["problem"] == "TOKEN is not set"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (
            {"webhook": {"url": {"secret": "hooks/url"}}},
            "Kubernetes Secrets cannot be read here; use {env: NAME}",
        ),
        ({"webhook": {"url": "file:///etc/passwd"}}, "the address is not an http(s) URL"),
        (
            {"webhook": {"url": "http://127.0.0.1:1", "headers": {"X": "a\nb"}}},
            "the message cannot be sent: ValueError",
        ),
        ({"slack": {"url": {"env": "X"}}}, "slack messages cannot be sent yet; use webhook"),
    ],
)
def test_what_cannot_be_sent_says_why(store, spec, problem):
    """No exception leaves the outbox."""
    write(store, "one")
    outbox.deliver(store, {"oncall": ReceiverSpec.model_validate(spec)}, 0.0)
    assert outbox.report(store)[0]["problem"] == problem


def test_an_alert_is_told_when_it_fires_and_when_it_is_over(tmp_path, inbox):
    """One message per transition, however often the policy is evaluated."""
    world = World(tmp_path)
    spec = {"alerts": {"drift": {"drift": {}}}, "actions": [{"when": "any", "notify": "oncall"}]}
    task = world.task(spec, receivers={"oncall": {"webhook": {"url": inbox.url}}})
    for day, shift in enumerate([0.0, 1.0, 1.0, 0.0, 0.0]):
        world.day(day, shift=shift)
        for _ in range(2):
            result = evaluate(task, world.root, wall(day + 1))
    firing, resolved = (body for _, _, body in inbox.got)
    assert (firing["state"], firing["alert"], firing["severity"]) == ("firing", "drift", "critical")
    assert firing["sentence"].startswith("1 of 3 features drifts, most wind")
    assert firing["at"] == "2013-06-12T00:00:00+00:00"
    assert resolved["state"] == "resolved"
    assert resolved["fingerprint"] == firing["fingerprint"]
    assert [one["state"] for one in result["messages"]] == ["delivered", "delivered"]


def test_a_silence_mutes_and_its_end_tells(tmp_path, inbox):
    """Silenced alerts still act and still count; what fires when the silence ends is told then, what is over is not."""
    world = World(tmp_path)
    spec = {
        "alerts": {"drift": {"drift": {}}},
        "actions": [
            {"when": "drift", "notify": "oncall"},
            {"when": "drift", "retrain": {"job": "late-arrival"}},
        ],
        "silences": [{"alert": "drift", "until": "2013-06-15"}],
    }
    task = world.task(spec, receivers={"oncall": {"webhook": {"url": inbox.url}}})
    for day, shift in enumerate([1.0, 0.0, 1.0]):
        world.day(day, shift=shift)
        result = evaluate(task, world.root, wall(day + 1))
    assert inbox.got == []
    assert len(result["triggers"]) == 1
    for day in (3, 4, 5):
        world.day(day, shift=1.0)
        evaluate(task, world.root, wall(day + 1))
    assert [body["state"] for _, _, body in inbox.got] == ["firing"]
