"""`KubeState`: what mlspec remembers about a target, in ConfigMaps beside its objects. See docs/design/state.md.

Rows are spread over shards, a few for each table. One more ConfigMap, the head, says who may write and holds the newest
commit. Every write goes through the head, by compare and swap with its resourceVersion: that is the moment at which a commit
is made, whole, whatever happens to us afterwards. Then its rows are copied to their shards; a copy that was interrupted is
seen through by readers and finished by the next writer. So there is one place where two writers meet, and one fence.

The ConfigMaps carry their own label, so that they are never taken for objects of the project. Documents are compressed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlspec_reconciler.cluster import Conflict, Refused, Unavailable
from mlspec_reconciler.clusters.kube import errors
from mlspec_reconciler.clusters.kube.transport import Transport
from mlspec_reconciler.state import FORMAT, Fenced, Put, Row, Table, Tables, check, plain, readable, written

LABEL, PART = "mlspec.dev/ledger", "mlspec.dev/part"
FULL = 400_000
"""Bytes of a packed document from which on new rows go to another one."""
LARGEST = 900_000
"""Bytes up to which the rows of a document may grow. An API server takes 1 MiB of a ConfigMap."""
TRIES = 14
"""How often a write that others have overtaken looks again, within about twenty seconds."""
Changes = Mapping[str, Mapping[str, Row | None]]
"""Shard -> the rows of it that a commit writes; None removes."""
PAUSE = (0.05, 2.0)
"""Seconds of the pause before the second of these, doubled before each further one, and the longest."""
RECENT = 32
"""Commits that the head knows by name, so that a writer whose answer was lost finds its own."""


@dataclass(frozen=True, slots=True)
class _Head:
    """Who may write, and the newest commit. `version` and `uid` are empty before it was made."""

    holder: str = ""
    token: int = 0
    recent: tuple[str, ...] = ()
    """Names of the newest writes of this document, the newest last."""
    changes: Changes = field(default_factory=dict)
    """The newest commit. All earlier ones are in the shards."""
    version: str = ""
    uid: str = ""

    @property
    def commit(self) -> str:
        """The name of the newest commit."""
        return self.recent[-1] if self.recent else ""


@dataclass(frozen=True, slots=True)
class _Shard:
    """Some rows of one table. `version` is empty before it was made."""

    name: str
    table: Table
    number: int
    rows: Mapping[str, Row] = field(default_factory=dict)
    commit: str = ""
    """The newest commit that was copied here."""
    version: str = ""
    size: int = 0
    """Bytes of the packed document."""

    def having(self, changes: Mapping[str, Row | None]) -> _Shard:
        """With the rows of a commit."""
        rows = {**self.rows, **changes}
        return replace(self, rows={key: row for key, row in rows.items() if row is not None})


@dataclass(frozen=True, slots=True)
class _State:
    """All ConfigMaps as of one moment."""

    head: _Head
    shards: Mapping[str, _Shard]

    def whole(self) -> dict[str, _Shard]:
        """The shards as they are when the newest commit is copied to all of them."""
        shards = dict(self.shards)
        for name, rows in self.head.changes.items():
            shards[name] = shards.get(name, _empty(name)).having(rows)
        return shards

    def tables(self) -> dict[Table, dict[str, Row]]:
        """All rows."""
        tables: dict[Table, dict[str, Row]] = {}
        for shard in sorted(self.whole().values(), key=lambda one: one.number):
            tables.setdefault(shard.table, {}).update(shard.rows)
        return tables


class _Overtaken(Exception):
    """A ConfigMap is not as it was read. Nothing was written; reading again tells more."""


class KubeState:
    """The contract of `StateStore` for one project in one namespace. Safe to use from several threads.

    Raises `Refused` when the namespace does not take a write: missing rights, a quota, a row that is too large.
    """

    def __init__(self, transport: Transport, namespace: str, project: str) -> None:
        self._transport = transport
        self._namespace = namespace
        self._project = project
        self._folder = f"/api/v1/namespaces/{namespace}/configmaps"
        self._head_name = f"mlspec-{project}-head"
        self._lock = threading.RLock()
        self._known: _State | None = None
        """As it was read or written last. May be old: a write that goes by it is refused then, and looks again."""
        self._heads: dict[int, str] = {}
        """Token -> uid of the head that gave it, so that none outlives `clear`."""

    def read(self) -> Tables:
        """All rows, by one list."""
        with self._lock:
            bodies = self._fetch()
            self._known = self._state(bodies)
            return self._state(bodies).tables()  # values of the caller's own, who may change them

    def take(self, holder: str) -> int:
        """The token of this holder."""
        with self._lock:
            head = self._read_head()
            for _ in self._tries():
                if head.uid and head.holder == holder:
                    break
                with contextlib.suppress(_Overtaken):
                    listed = self._known is None
                    state = self._copied(self._known or self._list(), listed)
                    head = replace(state.head, holder=holder, token=state.head.token + 1, changes={})
                    head = self._write_head(head, uuid.uuid4().hex[:12])
                    self._known = replace(state, head=head)
                    break
                self._known = None
                head = self._list().head
            self._heads[head.token] = head.uid
            return head.token

    def commit(self, token: int, writes: Sequence[Put]) -> None:
        """Write these rows: all or none, unless they are too many for one document."""
        with self._lock:
            own = [replace(put, value=plain(put.value) if put.value is not None else None) for put in writes]
            rest = [*{(put.table, put.key): put for put in own}.values()]
            for batch in list(_batches(rest)):
                self._commit(token, batch, rest)
                rest = rest[len(batch) :]

    def clear(self) -> None:
        """Delete every ConfigMap. The head goes first, and with it every token."""
        with self._lock:
            state = self._list()
            self._known = None
            for name in [self._head_name, *state.shards]:
                try:
                    self._transport.request("DELETE", f"{self._folder}/{name}")
                except errors.NotFound:
                    continue
                except errors.ApiError as error:
                    raise Unavailable(f"{name} cannot be deleted: {error}") from error

    # Writing

    def _commit(self, token: int, writes: Sequence[Put], all_writes: Sequence[Put]) -> None:
        """One commit. `all_writes`: what it is the first part of; nothing is written when any of it cannot be."""
        name = uuid.uuid4().hex[:12]
        for _ in self._tries():
            listed = self._known is None
            state = self._known or self._list()
            if name in state.head.recent:
                return  # it had arrived, although its answer had not
            try:
                self._admit(state.head, token)
                state = self._copied(state, listed)
                check(state.tables(), all_writes)
                changes = _placed(self._name, state, writes)
                if changes:
                    # Empty, and before the commit: what a quota refuses is refused before anything is written.
                    fresh = [_empty(name) for name in changes if name not in state.shards]
                    made = {shard.name: self._write_shard(shard) for shard in fresh}
                    state = replace(state, shards={**state.shards, **made})
                    head = self._write_head(replace(state.head, changes=changes), name)
                    self._known = None
                    # From here on it is made. Whoever writes next would copy it, too.
                    with contextlib.suppress(_Overtaken, Unavailable, Refused):
                        self._known = self._copied(replace(state, head=head), listed=False)
                return
            except _Overtaken:
                self._known = None
            except Conflict:
                if listed:
                    raise
                self._known = None

    def _admit(self, head: _Head, token: int) -> None:
        """Raise `Fenced` unless this token is the newest."""
        if not head.uid:
            raise Fenced(f"the state of {self._project} in {self._namespace} was cleared")
        if head.token != token or self._heads.get(token, head.uid) != head.uid:
            raise Fenced(f"another driver ({head.holder}) has taken over")

    def _copied(self, state: _State, listed: bool) -> _State:
        """Copy the newest commit to the shards that do not have it yet. Somebody may have deleted one of them since: it is made
        again when the state was listed just now, because after `clear` nothing may be."""
        shards, whole = dict(state.shards), state.whole()
        for name in state.head.changes:
            if name not in shards and not listed:
                raise _Overtaken
            if name not in shards or shards[name].commit != state.head.commit:
                shards[name] = self._write_shard(replace(whole[name], commit=state.head.commit))
        return replace(state, shards=shards)

    def _write_head(self, head: _Head, name: str) -> _Head:
        head = replace(head, recent=(*head.recent, name)[-RECENT:])
        document = {
            "format": FORMAT,
            "holder": head.holder,
            "token": head.token,
            "recent": head.recent,
            "changes": {name: _rows_document(rows) for name, rows in head.changes.items()},
        }
        metadata = self._write(self._head_name, _pack(document), head.version)
        return replace(head, version=metadata["resourceVersion"], uid=metadata["uid"])

    def _write_shard(self, shard: _Shard) -> _Shard:
        document = {
            "format": FORMAT,
            "table": shard.table,
            "number": shard.number,
            "commit": shard.commit,
            "rows": _rows_document(shard.rows),
        }
        packed = _pack(document)
        metadata = self._write(shard.name, packed, shard.version)
        return replace(shard, version=metadata["resourceVersion"], size=len(packed))

    def _write(self, name: str, packed: str, version: str) -> Mapping[str, Any]:
        """Make a ConfigMap, or replace this version of it; its new metadata. Raises `_Overtaken` when it is another."""
        metadata: dict[str, Any] = {
            "name": name,
            "namespace": self._namespace,
            "labels": {"app.kubernetes.io/managed-by": "mlspec", LABEL: self._project, PART: "state"},
        }
        if version:
            metadata["resourceVersion"] = version
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "binaryData": {"document": packed},
        }
        method, path = ("PUT", f"{self._folder}/{name}") if version else ("POST", self._folder)
        try:
            written: Mapping[str, Any] = self._transport.request(method, path, body=body).body["metadata"]
        except errors.AlreadyExists as error:
            self._get(name)
            raise _Overtaken from error
        except (errors.ConflictError, errors.NotFound) as error:
            raise _Overtaken from error
        except errors.ApiError as error:
            raise Refused(f"mlspec keeps its state in ConfigMaps of {self._namespace}: {error}") from error
        return written

    def _tries(self) -> Iterator[int]:
        """Numbers to try under, with longer and longer pauses; then it is a `Conflict`."""
        for number in range(TRIES):
            if number:
                time.sleep(random.uniform(0.5, 1.0) * min(PAUSE[0] * 2.0 ** (number - 1), PAUSE[1]))
            yield number
        raise Conflict(f"others write the state of {self._project} in {self._namespace} all the time")

    # Reading

    def _list(self) -> _State:
        self._known = self._state(self._fetch())
        return self._known

    def _fetch(self) -> Sequence[Mapping[str, Any]]:
        query = {"labelSelector": f"{LABEL}={self._project},{PART}=state"}
        try:
            return self._transport.list(self._folder, query=query)[0]
        except errors.ApiError as error:
            raise self._unread(error) from error

    def _state(self, bodies: Sequence[Mapping[str, Any]]) -> _State:
        head, shards = _Head(), {}
        for body in bodies:
            if body["metadata"]["name"] == self._head_name:
                head = self._head(body)
            else:
                shard = self._shard(body)
                shards[shard.name] = shard
        return _State(head, shards)

    def _read_head(self) -> _Head:
        body = self._get(self._head_name)
        return self._head(body) if body is not None else _Head()

    def _get(self, name: str) -> Mapping[str, Any] | None:
        """One ConfigMap. Raises `Refused` when it is somebody else's: no list of ours would ever show it."""
        try:
            body: Mapping[str, Any] = self._transport.request("GET", f"{self._folder}/{name}").body
        except errors.NotFound:
            return None
        except errors.ApiError as error:
            raise self._unread(error) from error
        labels = body["metadata"].get("labels") or {}
        if (labels.get(LABEL), labels.get(PART)) != (self._project, "state"):
            words = f"ConfigMap {name} of {self._namespace}, which is not its own: rename it"
            raise Refused(f"mlspec keeps its state in {words}")
        return body

    def _unread(self, error: errors.ApiError) -> Unavailable:
        words = f"mlspec keeps its state in ConfigMaps of {self._namespace}, which cannot be read"
        return Unavailable(f"{words}: {error}")

    def _head(self, body: Mapping[str, Any]) -> _Head:
        with self._understood(body):
            document, metadata = self._unpacked(body), body["metadata"]
            return _Head(
                document["holder"],
                document["token"],
                tuple(document["recent"]),
                {
                    _empty(name).name: {key: _row(row) for key, row in rows.items()}
                    for name, rows in document["changes"].items()
                },
                metadata["resourceVersion"],
                metadata["uid"],
            )

    def _shard(self, body: Mapping[str, Any]) -> _Shard:
        with self._understood(body):
            document, metadata = self._unpacked(body), body["metadata"]
            rows = {key: _row(row) for key, row in document["rows"].items()}
            return _Shard(
                metadata["name"],
                Table(document["table"]),
                document["number"],
                {key: row for key, row in rows.items() if row is not None},
                document["commit"],
                metadata["resourceVersion"],
                len(body["binaryData"]["document"]),
            )

    def _unpacked(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        document: Mapping[str, Any] = _unpack(body["binaryData"]["document"])
        readable(document["format"], self._called(body))
        return document

    @contextlib.contextmanager
    def _understood(self, body: Mapping[str, Any]) -> Iterator[None]:
        """Say of a document that nobody of us wrote, which it is."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
            way = "restore it from a backup, or delete it to forget what it held"
            raise Unavailable(f"{self._called(body)} is damaged ({error}): {way}") from error

    def _called(self, body: Mapping[str, Any]) -> str:
        return f"ConfigMap {body['metadata']['name']} of {self._namespace}"

    def _name(self, table: Table, number: int) -> str:
        return f"mlspec-{self._project}-{table}-{number}"


def _batches(writes: Sequence[Put]) -> Iterator[Sequence[Put]]:
    """The writes in parts that one document holds. Raises `Refused` for a row that none does."""
    batch: list[Put] = []
    size = 0
    for put in writes:
        cost = _cost(put.key, Row(put.value, put.expected + 1) if put.value is not None else None)
        if cost > LARGEST:
            raise Refused(
                f"{put.table} {put.key} takes {cost:,} bytes, a ConfigMap holds {LARGEST:,}: split the resource, or put "
                "less into it"
            )
        if batch and size + cost > FULL:
            yield batch
            batch, size = [], 0
        batch.append(put)
        size += cost
    if batch:
        yield batch


def _placed(name: Callable[[Table, int], str], state: _State, writes: Sequence[Put]) -> Changes:
    """What these writes change in which shards. A row stays where it is; a new one goes to the newest shard of its table, or to a
    new shard when that is full, and so does a row that its shard cannot hold any more."""
    rows = written(state.tables(), writes)
    homes = {(shard.table, key): shard for shard in state.shards.values() for key in shard.rows}
    newest: dict[Table, int] = {}
    sizes: dict[str, int] = {}
    """At most: the packed rows of a shard, and each new one packed alone."""
    for shard in state.shards.values():
        newest[shard.table] = max(newest.get(shard.table, 0), shard.number)
        sizes[shard.name] = shard.size if shard.rows else 0
    changes: dict[str, dict[str, Row | None]] = {}
    for put in writes:
        row = rows[put.table].get(put.key)
        cost = _cost(put.key, row)
        home = homes.get((put.table, put.key))
        if home is not None:
            change = changes.setdefault(home.name, {})
            change[put.key] = row
            if row is None:
                continue
            sizes[home.name] += cost
            if sizes[home.name] > LARGEST:
                sizes[home.name] = len(_pack(_rows_document(home.having(change).rows)))
            if sizes[home.name] <= LARGEST:
                continue
            change[put.key] = None
            sizes[home.name] -= cost
        elif row is None:
            continue
        number = newest.get(put.table, 1)
        if sizes.get(name(put.table, number), 0) and sizes[name(put.table, number)] + cost > FULL:
            number += 1
        place = name(put.table, number)
        newest[put.table] = number
        sizes[place] = sizes.get(place, 0) + cost
        changes.setdefault(place, {})[put.key] = row
    return changes


def _empty(name: str) -> _Shard:
    """A shard before anything was written to it."""
    rest, _, number = name.rpartition("-")
    return _Shard(name, Table(rest.rpartition("-")[2]), int(number))


def _cost(key: str, row: Row | None) -> int:
    return len(_pack(_rows_document({key: row})))


def _rows_document(rows: Mapping[str, Row | None]) -> dict[str, Any]:
    """Rows as they stand in a document: version and value, or nothing for one that is removed."""
    return {key: [row.version, row.value] if row is not None else None for key, row in rows.items()}


def _row(document: Sequence[Any] | None) -> Row | None:
    if document is None:
        return None
    version, value = document
    return Row(value, version)


def _pack(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode())).decode()


def _unpack(packed: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return document
