"""What an API server refuses, as values: its Status documents, by status and reason, without what they echo.

A Status may repeat the request (`Invalid value: {"metadata": ...}`). Structures are cut out here, and values that the
caller called secret, so that a message can be shown, logged and saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from mlspec_reconciler.cluster import Unavailable

HIDDEN = "(secret)"
_SHORTEST_SECRET = 4
"""Shorter values (`a`, `1`) would blacken ordinary words; they are hidden only as whole quoted words."""
_LONGEST = 600
_UNTYPED = re.compile(
    r"failed to (?:create typed patch object|convert new object) \(.*?\)(?: to proper version)?: "
    r"(?:unable to convert unstructured object to [^:]*: )?(?:(?P<field>\.[^:]+): )?(?P<message>.*)",
    re.DOTALL,
)
"""What server-side apply answers, with status 500, to a body that breaks the schema (structured-merge-diff)."""
_GOT = re.compile(r", got &.*", re.DOTALL)
_STRUCTURE = re.compile(r"(value: )(?:[\w.*\[\]]+ ?(?:\{\})?)?[{\[].*[}\]](?=: |$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that is wrong with one field. Conflicts of server-side apply name the manager in `message`."""

    field: str
    reason: str
    message: str


class ApiError(Exception):
    """The API server refused, for good: the same request would be refused again."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        causes: tuple[Cause, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.retry_after = retry_after


class NotFound(ApiError):
    """The API server knows the resource and has no such object. The only proof of absence."""


class NotServed(ApiError):
    """The API server serves nothing at this path: the API group, version or resource is not installed."""


class AlreadyExists(ApiError):
    """An object of this name exists."""


class ConflictError(ApiError):
    """Another version, another uid, or a field that another manager owns (`causes`)."""


class Gone(ApiError):
    """The resourceVersion or the continue token is too old: list again."""


class Invalid(ApiError):
    """The object breaks its schema or a rule (`causes` by field), or a field that cannot change was changed."""


class Forbidden(ApiError):
    """Not allowed: by RBAC, an admission rule or a quota, or the namespace is being deleted."""


class Busy(Unavailable):
    """The API server asks to come back later, in `retry_after` seconds if it says when."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def of_status(
    status: int, document: Mapping[str, Any], secrets: Iterable[str] = (), retry_after: float | None = None
) -> ApiError:
    """The error of a Status document (`kind: Status`, apimachinery/pkg/apis/meta/v1/types.go)."""
    if untyped := _untyped(status, document):
        message = clean(_GOT.sub("", untyped["message"]), secrets)
        field = (untyped["field"] or "").removeprefix(".")
        cause = (Cause(field, "FieldValueTypeInvalid", message),) if field else ()
        return Invalid(status, "Invalid", f"{field}: {message}" if field else message, cause)
    reason = str(document.get("reason") or "")
    details = document.get("details") or {}
    causes = tuple(
        Cause(
            redact(str(cause.get("field") or ""), secrets),
            str(cause.get("reason") or ""),
            clean(cause.get("message") or "", secrets),
        )
        for cause in details.get("causes") or ()
    )
    message = clean(document.get("message") or reason or f"status {status}", secrets)
    return _class(status, reason, details)(status, reason, message, causes, retry_after)


def refuses(status: int, document: Any) -> bool:
    """Whether an answer with a status of trouble (5xx) is a refusal all the same: asking again cannot help."""
    return isinstance(document, dict) and _untyped(status, document) is not None


def _untyped(status: int, document: Mapping[str, Any]) -> re.Match[str] | None:
    return _UNTYPED.match(str(document.get("message") or "")) if status == 500 else None


def _class(status: int, reason: str, details: Mapping[str, Any]) -> type[ApiError]:
    match status, reason:
        case 404, _ if details.get("name") and details.get("kind"):
            return NotFound
        case 404, _:
            return NotServed
        case 409, "AlreadyExists":
            return AlreadyExists
        case 409, _:
            return ConflictError
        case 410, _:
            return Gone
        case 422, _:
            return Invalid
        case 403, _:
            return Forbidden
    return ApiError


def clean(message: str, secrets: Iterable[str] = ()) -> str:
    """A message of the server as one line, without echoed structures and secrets, of at most 600 characters."""
    text = " ".join(redact(_STRUCTURE.sub(r"\1{...}", message), secrets).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 200]} ... {text[-190:]}"


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without any of the values, also where they stand quoted and escaped."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            escaped = secret.encode("unicode_escape").decode().replace('"', '\\"')
            text = text.replace(secret, HIDDEN).replace(escaped, HIDDEN)
        elif secret:
            text = text.replace(f'"{secret}"', f'"{HIDDEN}"')
    return text


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3); None when there is none."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
