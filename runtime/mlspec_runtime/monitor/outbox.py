"""Messages to receivers: written in the transaction of the transition that they tell, sent afterwards until delivered.

At least once, in order for each receiver: a message that fails holds back those behind it until it is delivered or
given up. Nothing is sent before the state that says so is safe where the next evaluation reads it (`due`, then
`evaluate` saves): an alert that was told is remembered, and so its end is told too. The `Idempotency-Key` lets a
receiver drop repetitions. Nothing here fails an evaluation.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlspec.kinds.receiver import ReceiverSpec, SecretValue
from mlspec.resource import seconds
from mlspec_runtime.monitor.store import Store, dump
from mlspec_runtime.task import Document

TIMEOUT = 5.0
"""Seconds for one request."""
_LONGEST_WAIT = 300.0


class Undelivered(Exception):
    """Why one attempt failed, in words that name no secret."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message. The same `key` is never written twice."""

    key: str
    receiver: str
    body: Document


def write(store: Store, message: Message, now: float) -> None:
    """Put a message into the outbox, once. `now` in seconds on the wall."""
    store.execute(
        "INSERT OR IGNORE INTO outbox (key, receiver, body, created, due) VALUES (?, ?, ?, ?, ?)",
        message.key, message.receiver, dump(message.body), now, now,
    )  # fmt: skip


def written(store: Store, key: str) -> bool:
    """Whether a message with this key was ever put in."""
    return bool(store.execute("SELECT 1 FROM outbox WHERE key = ?", key))


def due(store: Store, now: float) -> bool:
    """Whether `deliver` would send something."""
    return bool(store.execute("SELECT 1 FROM outbox WHERE state = 'waiting' AND due <= ? LIMIT 1", now))


def deliver(store: Store, receivers: Mapping[str, ReceiverSpec], now: float) -> None:
    """Send what is due. The first failure of a receiver ends its turn; it is tried again later, after 2, 4, 8 ... s."""
    for (receiver,) in store.execute("SELECT DISTINCT receiver FROM outbox WHERE state = 'waiting'"):
        spec = receivers.get(receiver)
        waiting = store.execute(
            "SELECT id, key, body, created, attempts, due FROM outbox "
            "WHERE receiver = ? AND state = 'waiting' ORDER BY id",
            receiver,
        )
        for number, key, body, created, attempts, due in waiting:
            if due > now:
                break
            try:
                if spec is None:
                    raise Undelivered("the policy names this receiver no longer")
                _post(spec, key, body)
            except Undelivered as error:
                limit = seconds(spec.give_up_after) if spec else 0.0
                if now - created >= limit:
                    _mark(store, number, "failed", attempts + 1, now, str(error))
                    continue
                wait = min(_LONGEST_WAIT, 2.0 ** min(attempts + 1, 16))
                _mark(store, number, "waiting", attempts + 1, now + wait, str(error))
                break
            _mark(store, number, "delivered", attempts + 1, now, "")


def _mark(store: Store, number: int, state: str, attempts: int, due: float, problem: str) -> None:
    store.execute(
        "UPDATE outbox SET state = ?, attempts = ?, due = ?, problem = ? WHERE id = ?",
        state, attempts, due, problem, number,
    )  # fmt: skip


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _post(spec: ReceiverSpec, key: str, body: str) -> None:
    if spec.webhook is None:
        raise Undelivered(f"{spec.choice} messages cannot be sent yet; use webhook")
    url = _value(spec.webhook.url)
    if not url.startswith(("http://", "https://")):
        raise Undelivered("the address is not an http(s) URL")
    headers = {"Content-Type": "application/json", "User-Agent": "mlspec", "Idempotency-Key": key}
    headers |= {name: _value(value) for name, value in spec.webhook.headers.items()}
    try:
        request = urllib.request.Request(url, body.encode(), headers, method="POST")
        with _OPENER.open(request, timeout=TIMEOUT):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise Undelivered(f"the receiver answered {error.code}") from None
    except urllib.error.URLError as error:
        raise Undelivered(f"the receiver cannot be reached: {error.reason}") from None
    except (OSError, ValueError) as error:  # broken connections, header values that HTTP does not allow
        raise Undelivered(f"the message cannot be sent: {type(error).__name__}") from None


def _value(value: str | SecretValue) -> str:
    if isinstance(value, str):
        return value
    if value.env is None:
        raise Undelivered("Kubernetes Secrets cannot be read here; use {env: NAME}")
    if (found := os.environ.get(value.env)) is None:
        raise Undelivered(f"{value.env} is not set")
    return found


def report(store: Store) -> list[Document]:
    """The newest messages and what became of them."""
    found = store.execute(
        "SELECT key, receiver, state, attempts, problem, json(body) FROM outbox ORDER BY id DESC LIMIT 20"
    )
    return [
        {
            "key": key, "receiver": receiver, "state": state, "attempts": attempts, "problem": problem,
            "sentence": json.loads(body)["sentence"],
        }
        for key, receiver, state, attempts, problem, body in found
    ]  # fmt: skip
