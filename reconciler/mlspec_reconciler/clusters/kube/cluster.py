"""`KubeCluster`: the contract of a cluster in a namespace of Kubernetes.

Declarative objects are written by server-side apply with one field manager and never by force, runs by a create that
refuses what exists. What is ours is known from the inventory and from the objects' own marks, never from a label alone.
API facts: https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mlspec.engines import argo, pod
from mlspec.kinds.project import KubernetesTarget
from mlspec.manifest import OWN, Key
from mlspec.workload import RunFact
from mlspec_reconciler.cluster import (
    STOPPED,
    Conflict,
    Difference,
    Immutable,
    Object,
    Preview,
    Refused,
    Unavailable,
    key_of,
)
from mlspec_reconciler.clusters.kube import access, errors, owned, secrets
from mlspec_reconciler.clusters.kube.bodies import (
    essence,
    made_by,
    maker,
    manager,
    object_of,
    selector,
)
from mlspec_reconciler.clusters.kube.discovery import Discovery
from mlspec_reconciler.clusters.kube.parts import MAKERS, Parts, kinds
from mlspec_reconciler.clusters.kube.state import KubeState
from mlspec_reconciler.clusters.kube.transport import MERGE_TYPE, Transport
from mlspec_reconciler.clusters.kube.watching import Watching
from mlspec_reconciler.clusters.kube.writing import Writer, refuse
from mlspec_reconciler.state import Table

if TYPE_CHECKING:
    from mlspec_reconciler.clusters.kube.argo_server import ArgoServer

JSON = Mapping[str, Any]
READS = ("get", "list", "watch")
WRITES = (*READS, "create", "patch", "delete")
SINGLE_READS = 16
"""Objects of one kind that are looked for one by one; more are found by one list."""
HELPERS = ("init", "wait")
"""Containers that Argo adds to its pods."""
ARGO_LINE = " argo=true"
"""Ends the lines that Argo's executor writes into the log of a step."""
LEAVING = 45.0
"""Seconds in which the pods of a deleted run should be gone; a definition that is new to the garbage collector takes it half a
minute."""
YOUNG = 10.0
"""Seconds in which Kubernetes gives a new namespace its root certificate."""
RETRIES = 5
"""Writes of an object whose status changes all the time, each with the version that was read just before."""
INSTALL = {
    "argoproj.io": "install Argo Workflows 3.7 (a TrainingJob can also choose engine: job)",
    "kueue.x-k8s.io": "install Kueue, or take the pool away",
    "gateway.networking.k8s.io": "install the Gateway API, or take the gateway away",
}
"""API group -> what to do when the cluster lacks it."""


class KubeCluster:
    """The objects of one project in one namespace. Safe to use from several threads."""

    def __init__(
        self, transport: Transport, discovery: Discovery, target: KubernetesTarget, project: str
    ) -> None:
        self.transport = transport
        self.namespace = target.namespace
        self.project = project
        self.manager = manager(project)
        self.state = KubeState(transport, target.namespace, project)
        self._discovery = discovery
        self._writer = Writer(transport, discovery, target, project)
        self._absent: set[Key] = set()
        """Keys that were asked for in this process and were not there; the write itself proves it again."""
        self._seen: dict[Key, Object] = {}
        self._kinds: set[tuple[str, str]] | None = None
        """Kinds of the inventory as it was listed last."""
        self._watching: Watching | None = None
        self._ended: dict[Key, str] = {}
        """Runs that were deleted by this process, with their uids."""
        self._argo_server = target.argo.server if target.argo is not None else None

    @staticmethod
    def open(target: KubernetesTarget, project: str) -> KubeCluster:
        """Connect by kubeconfig context. Raises `Unavailable` when there is no cluster or no such namespace."""
        transport = Transport.open(target.context)
        cluster = KubeCluster(transport, Discovery.cached(transport), target, project)
        try:
            transport.request("GET", f"/api/v1/namespaces/{target.namespace}")
        except errors.NotFound:
            words = f"there is no namespace {target.namespace} on {transport.server}"
            raise Unavailable(f"{words}; make it with: kubectl create namespace {target.namespace}") from None
        except errors.Forbidden:
            pass  # whoever may not read the namespace may still use it
        except errors.ApiError as error:
            raise Unavailable(
                f"{transport.server} does not tell of namespace {target.namespace}: {error}"
            ) from error
        return cluster

    def close(self) -> None:
        """End watches and connections."""
        if self._watching is not None:
            self._watching.close()
        if "_argo" in self.__dict__ and self._argo is not None:
            self._argo.close()
        self.transport.close()

    @property
    def concurrency(self) -> int:
        """Writes at a time."""
        return self.transport.concurrency

    @cached_property
    def _argo(self) -> ArgoServer | None:
        if self._argo_server is None:
            return None
        # Only here: its client is large, and most commands need none.
        from mlspec_reconciler.clusters.kube.argo_server import ArgoServer

        return ArgoServer(self._argo_server, self.namespace, self.transport.authorization)

    @cached_property
    def identity(self) -> str:
        """`kubernetes/UID/NAMESPACE`, by the uid of the namespace's root certificate: whoever may write here may read it, so
        everybody gets the same name."""
        path = f"/api/v1/namespaces/{self.namespace}/configmaps/kube-root-ca.crt"
        until = time.monotonic() + YOUNG
        while True:
            try:
                uid = self.transport.request("GET", path).body["metadata"]["uid"]
                return f"kubernetes/{uid}/{self.namespace}"
            except errors.NotFound:  # a namespace gets it soon after it was made
                if time.monotonic() > until:
                    break
                time.sleep(0.2)
            except errors.ApiError as error:
                words = f"the cluster cannot be told from others: {error}"
                raise Unavailable(
                    f"{words}; get and list of ConfigMaps in {self.namespace} are needed"
                ) from None
        raise Unavailable(
            f"there is no ConfigMap kube-root-ca.crt in {self.namespace}: is the namespace there, and does "
            "kube-controller-manager run?"
        )

    def get(self, key: Key) -> Object | None:
        """One object; None when the API server is sure that there is none."""
        try:
            body = self._find(key)
        except errors.ApiError as error:
            raise Unavailable(f"{key} cannot be read: {error}") from error
        return None if body is None else object_of(body, self._parts_of([body]), self.project)

    def _find(self, key: Key) -> dict[str, Any] | None:
        if self._discovery.resource(key.api_version, key.kind) is None:
            return None
        try:
            body: dict[str, Any] = self.transport.request("GET", self._path(key)).body
        except errors.NotFound:
            return None
        return body

    def list(self) -> Iterable[Object]:
        """All objects of the inventory that exist, with their parts."""
        keys = self._inventory()
        found = self._read(keys)
        parts = self._parts_of(found.values())
        objects = [object_of(body, parts, self.project) for body in found.values()]
        for body in found.values():
            if body["kind"] == secrets.SECRET:  # an admission rule may echo the live one
                self.transport.hide(secrets.values(body))
        self._seen = {one.key: one for one in objects}
        self._kinds = {(key.api_version, key.kind) for key in keys}
        self._absent = (self._absent - found.keys()) | (keys - found.keys())
        return objects

    def create(self, body: JSON, annotations: Mapping[str, str]) -> Object:
        """Create; `Conflict` when it exists."""
        key = key_of(body)
        if self._writer.is_run(key):
            return self._create_run(key, body, annotations)
        if key not in self._absent and (live := self.get(key)) is not None:
            raise Conflict(f"{key} {'is being deleted' if live.deleting else 'exists already'}")
        self._absent.discard(key)
        answer = self._writer.apply(key, self._writer.complete(body, annotations), making=True)
        if answer.status == 201:
            return object_of(answer.body, Parts(()), self.project)
        if not self._was_ours(key, answer.body):
            self._writer.release(key)  # theirs stays as it was
        elif answer.attempts > 1:
            return object_of(answer.body, Parts(()), self.project)
        raise Conflict(f"{key} exists already: somebody was faster")

    def apply(self, body: JSON, annotations: Mapping[str, str], version: str | None = None) -> Object:
        """Server-side apply; with `version`, `Conflict` unless nobody edited the object since."""
        key = key_of(body)
        complete = self._writer.complete(body, annotations)
        if (seen := self._seen.get(key)) is not None:
            self.transport.hide(secrets.values(seen.body))
        live = None
        if version is not None:
            # By the version alone the API server would make the object anew when it is gone.
            live = seen if seen is not None and seen.version == version else self.get(key)
            if live is None:
                raise Conflict(f"{key} is gone")
            complete["metadata"]["uid"] = live.uid
        for _ in range(RETRIES):
            try:
                if live is not None and version is not None:
                    version = self._writer.let_go(body, live.body, version)
                    complete["metadata"]["resourceVersion"] = version
                written = object_of(self._writer.apply(key, complete).body, self._parts_of(()), self.project)
                if written.deleting:
                    raise Conflict(f"{key} is being deleted")
                return written
            except Conflict:
                live = self.get(key) if version is not None else None
                if live is None or seen is None or live.deleting or live.content != seen.content:
                    raise
                version = live.version  # only its status moved
        raise Conflict(f"{key} has changed {RETRIES} times while it was written")

    def holds(self, body: JSON, live: Object) -> bool | None:
        """By the managed fields of the live object; None where only the server can tell."""
        match owned.proof(self._writer.wanted(body), live.body, self.manager):
            case owned.Proof.HOLDS:
                return True
            case owned.Proof.DIFFERS:
                return False
        return None

    def preview(self, writes: Sequence[tuple[JSON, Mapping[str, str], Object | None]]) -> Sequence[Preview]:
        """A dry run of each write, some at a time."""
        self._look_for(key_of(body) for body, _, live in writes if live is None)
        answers = self.transport.each(lambda write: self._preview(*write), writes)
        return [
            Preview(refusal=str(answer)) if isinstance(answer, errors.ApiError) else answer
            for answer in answers
        ]

    def delete(self, key: Key, uid: str) -> None:
        """Ask for deletion of exactly this object; what was made for it goes with it."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        if self._writer.is_run(key):
            self._ended[key] = uid
        try:
            self.transport.request("DELETE", self._path(key), body=options)
        except errors.NotFound:
            return
        except errors.ConflictError as error:
            live = self.get(key)
            if live is not None and live.uid == uid and not live.deleting:
                raise Conflict(f"{key} is not deleted: {error}") from error
        except errors.ApiError as error:
            raise Refused(str(error)) from error

    def cancel(self, live: Object) -> RunFact | None:
        """A Workflow is told to shut down, which keeps its steps to look at; other runs are deleted, and remembered."""
        if live.key.kind == "Workflow":
            if self._argo is not None:
                self._argo.stop(live.key.name, STOPPED)
                return None
            body = {"spec": {"shutdown": "Stop"}, "metadata": {"uid": live.uid}}
            path = self._path(live.key)
            try:
                self.transport.request("PATCH", path, body=body, content_type=MERGE_TYPE)
            except errors.ApiError as error:
                raise Refused(f"{live.key} is not stopped: {error}") from error
            return None
        self.delete(live.key, live.uid)
        return RunFact("failed", {}, STOPPED)

    def retry(self, live: Object) -> bool:
        """A Workflow by the Argo Server, which resets the steps that failed and keeps the others."""
        if self._argo is None or live.key.kind != "Workflow":
            return False
        self._argo.retry(live.key.name)
        return True

    def watch(self, timeout: float) -> Iterator[Key]:
        """Keys of objects (and of their pods) as they change."""
        if self._kinds is None:
            self._kinds = {(key.api_version, key.kind) for key in self._inventory()}
        watched = self._kinds | kinds(one.body for one in self._seen.values())
        targets = {
            (self._collection(*kind), selector(self.project) if kind[1] != "Workload" else "")
            for kind in sorted(watched)
            if self._discovery.resource(*kind) is not None
        }
        if self._watching is None:
            self._watching = Watching(self.transport, targets)
        else:
            self._watching.follow(targets)
        return self._watching.changes(timeout)

    def wake(self) -> None:
        """The cluster's own controllers run the objects."""

    def runs(self) -> Mapping[str, RunFact]:
        """Nothing beside the objects: a Workflow that is gone is forgotten here."""
        return {}

    def lacks(self, wanted: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        """Kinds that the cluster does not serve, with what to do."""
        return {
            (api_version, kind): f"the cluster lacks {kind} of {api_version}: "
            + INSTALL.get(api_version.split("/")[0], "install what serves it")
            for api_version, kind in self._discovery.missing(wanted)
        }

    def forbidden(self, wanted: Iterable[tuple[str, str]]) -> Sequence[str]:
        """What we may not do with these kinds here, and with what is made for them, one sentence each."""
        wanted = {*wanted}
        made = {kind for _, each in wanted for kind in MAKERS.get(each, ())}
        needs: list[tuple[tuple[str, str], tuple[str, ...]]] = [(each, WRITES) for each in sorted(wanted)]
        needs += [(each, READS) for each in sorted(made)]
        needs.append((("v1", "ConfigMap"), (*WRITES, "update")))  # the state replaces its documents
        rights = []
        for (api_version, kind), verbs in needs:
            resource = self._discovery.resource(api_version, kind)
            if resource is None:
                continue
            namespace = self.namespace if resource.namespaced else ""
            rights += [access.Right(verb, resource.group, resource.plural, namespace) for verb in verbs]
        missing: dict[tuple[str, str], list[str]] = {}
        for right in access.missing(self.transport, rights):
            missing.setdefault((right.resource, right.group), []).append(right.verb)
        return [
            f"you may not {', '.join(verbs)} {resource}{'.' + group if group else ''} in {self.namespace}; ask for the role"
            for (resource, group), verbs in missing.items()
        ]

    def printed(self, live: Object, lines: int) -> Mapping[str, str]:
        """From the containers of its pods, as long as the pods are there: `POD CONTAINER`; what is gone from Argo's archive."""
        found = {}
        for part in live.parts:
            if part["kind"] != "Pod":
                continue
            name, spec = part["metadata"]["name"], part["spec"]
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                if container["name"] in HELPERS:
                    continue
                path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/log"
                query = {"container": container["name"], "tailLines": str(lines)}
                try:
                    text = self.transport.text(path, query=query)
                except errors.ApiError:  # it has not started yet
                    continue
                found[f"{name} {container['name']}"] = _own(text)
        return self._archived(live, lines) | found

    def _archived(self, live: Object, lines: int) -> dict[str, str]:
        """`STEP (archived)`, and `STEP (archived, attempt 2)` where a step was tried again; in place of a log that cannot be
        read, why."""
        if live.key.kind != "Workflow" or self._argo is None:
            return {}
        found = {}
        for title, node in argo.archived_logs(live.live).items():
            try:
                text = _own(self._argo.log(live.key.name, node))
            except (Refused, Unavailable) as error:
                text = f"{error}\n"
            found[title] = "".join(text.splitlines(keepends=True)[-lines:])
        return found

    def _inventory(self) -> set[Key]:
        rows = self.state.read().get(Table.INVENTORY, {})
        return {Key(*one[:4]) for row in rows.values() for one in row.value["objects"]}

    def _read(self, keys: set[Key]) -> dict[Key, dict[str, Any]]:
        """Those of the keys that exist: by one list per kind, and what lost its label one by one."""
        by_kind: dict[tuple[str, str], set[Key]] = {}
        for key in keys:
            by_kind.setdefault((key.api_version, key.kind), set()).add(key)
        served = [kind for kind in sorted(by_kind) if self._discovery.resource(*kind) is not None]
        found: dict[Key, dict[str, Any]] = {}
        for items in self._lists(served, selector(self.project)):
            found |= {key: one for one in items if (key := key_of(one)) in keys}
        singles: list[Key] = []
        for kind in served:
            missing = by_kind[kind] - found.keys()
            if len(missing) <= SINGLE_READS:
                singles += sorted(missing)
                continue
            for items in self._lists([kind], ""):
                found |= {key: one for one in items if (key := key_of(one)) in missing}
        for key, live in zip(singles, self.transport.each(self.get, singles), strict=True):
            if isinstance(live, errors.ApiError):
                raise Unavailable(f"{key} cannot be read: {live}")
            if live is not None:
                found[key] = dict(live.body)
        return found

    def _was_ours(self, key: Key, written: JSON) -> bool:
        """Whether an object that a create found was ours before: made by an attempt whose answer was lost, or by another
        apply of this project. Times tell it to the second, the revision before our write exactly."""
        if not made_by(self.manager, written):
            return False
        query = {
            "fieldSelector": f"metadata.name={key.name}",
            "resourceVersion": str(int(written["metadata"]["resourceVersion"]) - 1),
            "resourceVersionMatch": "Exact",
        }
        try:
            found = self.transport.list(self._collection(key.api_version, key.kind), query=query)[0]
        except (errors.ApiError, Unavailable, ValueError):
            return True
        return all(made_by(self.manager, one) for one in found)

    def _look_for(self, keys: Iterable[Key]) -> None:
        """Note which of many keys are not there, by the names of all objects of their kinds."""
        by_kind: dict[tuple[str, str], set[Key]] = {}
        for key in keys:
            by_kind.setdefault((key.api_version, key.kind), set()).add(key)
        for kind, wanted in by_kind.items():
            if len(wanted) > SINGLE_READS:
                path = self._collection(*kind)
                try:
                    found = self.transport.scan(path, lambda item: str(item["metadata"]["name"]))
                except errors.Forbidden:
                    continue  # each of them tells
                except errors.ApiError as error:
                    raise Unavailable(f"{kind[1]}s of {kind[0]} cannot be listed: {error}") from error
                names = set(found[0])
                self._absent |= {key for key in wanted if key.name not in names}

    def _parts_of(self, bodies: Iterable[JSON]) -> Parts:
        wanted = [kind for kind in sorted(kinds(bodies)) if self._discovery.resource(*kind) is not None]
        ours = [kind for kind in wanted if kind[1] != "Workload"]  # Kueue does not copy labels to its own
        lists = [
            *self._lists(ours, selector(self.project)),
            *self._lists([k for k in wanted if k not in ours], ""),
        ]
        return Parts(one for items in lists for one in items)

    def _lists(self, wanted: Sequence[tuple[str, str]], selector: str) -> Sequence[Sequence[dict[str, Any]]]:
        query = {"labelSelector": selector} if selector else {}
        answers = self.transport.each(
            lambda kind: self.transport.list(self._collection(*kind), query=query)[0], wanted
        )
        if any(isinstance(answer, errors.NotServed) for answer in answers):
            self._discovery.refresh()  # what is known of the server may be an hour old
        found: list[Sequence[dict[str, Any]]] = []
        for kind, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, errors.NotServed) and self._discovery.resource(*kind) is None:
                continue  # its definition was deleted, and with it all objects
            if isinstance(answer, errors.ApiError):
                raise Unavailable(f"{kind[1]}s of {kind[0]} cannot be listed: {answer}")
            found.append(answer)
        return found

    def _create_run(self, key: Key, body: JSON, annotations: Mapping[str, str]) -> Object:
        self._await_pods(key)
        complete = self._writer.complete(body, annotations)
        try:
            return object_of(self._writer.post(key, complete).body, Parts(()), self.project)
        except errors.AlreadyExists as error:
            raise Conflict(f"{key} exists already") from error
        except errors.ApiError as error:
            refuse(key, error)
        except Unavailable:
            # It is not known whether it was made. Looking is safe: the name says what it computes.
            live = self.get(key)
            if live is not None and live.annotations == dict(annotations):
                return live
            raise

    def _await_pods(self, key: Key) -> None:
        """Argo names pods by the name of their Workflow: it would take one of the run before, which failed, for the new one's.

        https://github.com/argoproj/argo-workflows/blob/v3.7.3/workflow/controller/workflowpod.go (createWorkflowPod)
        """
        uid = self._ended.get(key)
        until = time.monotonic() + LEAVING
        while uid is not None and self._has_pods(key, uid):
            if time.monotonic() > until:
                raise Conflict(f"pods of the {key} before are still there")
            time.sleep(0.3)
        self._ended.pop(key, None)

    def _has_pods(self, key: Key, uid: str) -> bool:
        query = {"labelSelector": f"{pod.RUN}={key.name}"}
        try:
            found = self.transport.list(self._collection("v1", "Pod"), query=query)[0]
        except errors.Forbidden:
            return False
        except errors.ApiError as error:
            raise Unavailable(f"pods of {key} cannot be listed: {error}") from error
        return any(
            owner["uid"] == uid for one in found for owner in one["metadata"].get("ownerReferences", ())
        )

    def _preview(self, body: JSON, annotations: Mapping[str, str], live: Object | None) -> Preview:
        key = key_of(body)
        complete = self._writer.complete(body, annotations)
        foreign = ""
        try:
            if self._writer.is_run(key):
                return self._preview_run(key, complete)
            looked = live is None and key not in self._absent
            if looked and (there := self._find(key)) is not None:
                live = object_of(there, Parts(()), self.project)
            if live is None:
                self._absent.add(key)
            else:
                self.transport.hide(secrets.values(live.body))
                same = live.annotations.get(OWN + "resource") == annotations.get(OWN + "resource")
                if not same and (looked or not live.annotations):
                    foreign = maker(live.body, self.manager)
            answer = self._writer.apply(key, complete, dry=True)
        except Immutable as error:
            return Preview(forced_by=error.field, foreign=foreign)
        except (Refused, Conflict) as error:
            return Preview(refusal=str(error), foreign=foreign)
        if live is None:
            return Preview()
        if essence(answer.body) == essence(live.body):
            return Preview(changes=False, foreign=foreign)
        before = self._writer.after_let_go(body, live.body)
        found = owned.differences(self._writer.wanted(body), before, self.manager)
        return Preview(
            differences=tuple(
                Difference(path, _shown(key, path, old), _shown(key, path, new)) for path, old, new in found
            ),
            foreign=foreign,
        )

    def _preview_run(self, key: Key, body: JSON) -> Preview:
        try:
            self._writer.post(key, body, dryRun="All")
        except errors.AlreadyExists:
            live = self.get(key)
            return (
                Preview(foreign=maker(live.body, self.manager))
                if live and not live.annotations
                else Preview()
            )
        except errors.ApiError as error:
            refuse(key, error)
        return Preview()

    def _path(self, key: Key) -> str:
        return self._discovery.path(key.api_version, key.kind, key.namespace, key.name)

    def _collection(self, api_version: str, kind: str) -> str:
        return self._discovery.path(api_version, kind, self.namespace)


def _own(text: str) -> str:
    """What a step has printed, without what Argo's executor has."""
    return "".join(line for line in text.splitlines(keepends=True) if ARGO_LINE not in line)


def _shown(key: Key, path: Sequence[str | int], value: Any) -> Any:
    """The value as it may be shown."""
    return None if value is owned.ABSENT else secrets.shown(key.kind, path, value)
