"""What we may not do, asked before anything is done: `plan` shows it in place of an apply that stops half-way.

One SelfSubjectRulesReview per namespace tells nearly all; what it does not tell (it may be incomplete, and knows no rules
of the whole cluster) is asked right by right. https://kubernetes.io/docs/reference/access-authn-authz/authorization/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.clusters.kube import errors
from mlspec_reconciler.clusters.kube.transport import Transport

_REVIEWS = "/apis/authorization.k8s.io/v1"


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One verb (get, list, watch, create, patch, delete) on a resource: `deployments`, `pods/log`.

    Without `namespace`: in the whole cluster. Without `name`: on any object.
    """

    verb: str
    group: str
    resource: str
    namespace: str
    name: str = ""


def missing(transport: Transport, wanted: Iterable[Right]) -> list[Right]:
    """Those rights that we do not have, in the order given. `Unavailable` when the server does not tell."""
    rights = [*dict.fromkeys(wanted)]
    namespaces = sorted({right.namespace for right in rights} - {""})
    rules = {each: _rules(transport, each) for each in namespaces}
    unsure: list[Right] = []
    refused: set[Right] = set()
    for right in rights:
        known = rules.get(right.namespace, _Rules((), complete=False))
        if not known.grant(right):
            (refused.add if known.complete else unsure.append)(right)
    for right, answer in zip(
        unsure, transport.each(lambda one: _allowed(transport, one), unsure), strict=True
    ):
        if isinstance(answer, errors.ApiError):
            raise _untold(transport, answer)
        if not answer:
            refused.add(right)
    return [right for right in rights if right in refused]


@dataclass(frozen=True, slots=True)
class _Rules:
    """What we may do in a namespace. Incomplete when an authorizer (of nodes, a webhook) cannot list its rules."""

    rules: Sequence[Mapping[str, Any]]
    complete: bool

    def grant(self, right: Right) -> bool:
        """Whether a rule says so."""
        subresource = right.resource.partition("/")[2]
        return any(
            _covers(rule.get("verbs"), right.verb)
            and _covers(rule.get("apiGroups"), right.group)
            and _covers(rule.get("resources"), right.resource, f"*/{subresource}")
            and (not rule.get("resourceNames") or right.name in rule["resourceNames"])
            for rule in self.rules
        )


def _covers(values: Sequence[str] | None, *wanted: str) -> bool:
    return values is not None and ("*" in values or any(value in values for value in wanted))


def _rules(transport: Transport, namespace: str) -> _Rules:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    try:
        status = transport.request("POST", f"{_REVIEWS}/selfsubjectrulesreviews", body=review).body["status"]
    except errors.ApiError as error:
        raise _untold(transport, error) from error
    return _Rules(status.get("resourceRules") or (), complete=not status.get("incomplete"))


def _allowed(transport: Transport, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "namespace": right.namespace,
        "name": right.name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    body = transport.request("POST", f"{_REVIEWS}/selfsubjectaccessreviews", body=review).body
    return bool(body["status"]["allowed"])


def _untold(transport: Transport, error: errors.ApiError) -> Unavailable:
    return Unavailable(f"{transport.server} does not tell what we may do: {error.message}")
