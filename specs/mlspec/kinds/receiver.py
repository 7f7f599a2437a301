"""Receiver: where notifications of monitoring policies go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, cast

from pydantic import Field

from mlspec.diagnostics import Problem
from mlspec.kind import Catalog, Context, Lowered
from mlspec.resource import Base, Identifier, Interval, OneOf, Resource


class SecretValue(OneOf):
    """A value that does not stand in git."""

    CHOICES: ClassVar[tuple[str, ...]] = ("env", "secret")

    env: Identifier | None = None
    """Environment variable of the process that sends."""
    secret: str | None = None
    """`NAME/KEY` of a Kubernetes Secret (not read by any target yet: use `env`, which on Kubernetes comes from a Secret too)."""


class Webhook(Base):
    """An HTTP POST of a JSON document."""

    url: str | SecretValue
    """Address: `http://` or `https://`."""
    headers: dict[str, str | SecretValue] = {}
    """More request headers."""


class Slack(Base):
    """A Slack incoming webhook."""

    url: SecretValue
    """Address of the incoming webhook."""


class Email(Base):
    """Mail over SMTP."""

    to: list[str] = Field(min_length=1)
    """Addresses."""
    server: str
    """`host:port` of the SMTP server."""
    from_: str = Field("mlspec@localhost", alias="from")
    """Sender."""


class Apprise(Base):
    """Any service that Apprise knows."""

    url: SecretValue
    """Apprise URL."""


class ReceiverSpec(OneOf):
    """One way to tell somebody. Messages wait in an outbox and are retried until they are delivered."""

    CHOICES: ClassVar[tuple[str, ...]] = ("webhook", "slack", "email", "apprise")

    webhook: Webhook | None = None
    """HTTP POST."""
    slack: Slack | None = None
    """Slack (not sent to by any target yet)."""
    email: Email | None = None
    """Mail (not sent to by any target yet)."""
    apprise: Apprise | None = None
    """Apprise (not sent to by any target yet)."""
    give_up_after: Interval = "1d"
    """Messages older than this are marked as failed and no longer retried."""


def check(resource: Resource, catalog: Catalog) -> Iterator[Problem]:
    """An address that can be posted to."""
    spec = cast(ReceiverSpec, resource.spec)
    url = spec.webhook.url if spec.webhook is not None else None
    if isinstance(url, str) and not url.startswith(("http://", "https://")):
        path = ("spec", "webhook", "url")
        yield Problem(
            "invalid-url", f'"{url}" is not an http(s) address', path, "such as https://..., or {env: NAME}"
        )


def lower(resource: Resource, context: Context) -> Lowered:
    """Nothing runs: monitoring policies send. What they could not send is said here, also when no policy names it."""
    spec = cast(ReceiverSpec, resource.spec)
    if spec.webhook is None:
        return Lowered(unsupported=f"{spec.choice} messages cannot be sent yet; use webhook")
    values = {"url": spec.webhook.url, **{f"headers.{key}": one for key, one in spec.webhook.headers.items()}}
    unread = [key for key, one in values.items() if isinstance(one, SecretValue) and one.secret is not None]
    if unread:
        words = f"{', '.join(unread)}: {{secret: ...}} cannot be read yet; use {{env: NAME}}"
        return Lowered(unsupported=words)
    return Lowered(version="", output=spec.document())
