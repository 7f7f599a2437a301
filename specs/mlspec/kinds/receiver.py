"""Receiver: where notifications of monitoring policies go."""

from __future__ import annotations

from typing import ClassVar, cast

from pydantic import Field

from mlspec.kind import Context, Lowered
from mlspec.resource import Base, Interval, OneOf, Resource


class SecretValue(OneOf):
    """A value that does not stand in git."""

    CHOICES: ClassVar[tuple[str, ...]] = ("env", "secret")

    env: str | None = None
    """Environment variable of the process that sends."""
    secret: str | None = None
    """`NAME/KEY` of a Kubernetes Secret."""


class Webhook(Base):
    """An HTTP POST of a JSON document."""

    url: str | SecretValue
    """Address."""
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
    """Slack (not executed by the local target yet)."""
    email: Email | None = None
    """Mail (not executed by the local target yet)."""
    apprise: Apprise | None = None
    """Apprise (not executed by the local target yet)."""
    give_up_after: Interval = "1d"
    """Messages older than this are marked as failed and no longer retried."""


def lower(resource: Resource, context: Context) -> Lowered:
    """Nothing runs: monitoring policies send."""
    spec = cast(ReceiverSpec, resource.spec)
    if spec.choice != "webhook":
        return Lowered(unsupported=f"{spec.choice} messages cannot be sent yet; use webhook")
    return Lowered(version="", output=spec.document())
