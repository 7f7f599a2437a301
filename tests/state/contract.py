"""The contract of a StateStore, as cases over any implementation. A test file subclasses `Contract` and gives `store`, and
`again()`, which opens the same state as another process would."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlspec_reconciler.cluster import Conflict
from mlspec_reconciler.state import Fenced, Put, Session, StateStore, Table

Again = Callable[[], StateStore]


class Contract:
    """What every store keeps."""

    def test_nothing_is_there_at_first(self, store: StateStore) -> None:
        """Absent is empty, never an error."""
        assert all(not rows for rows in store.read().values())

    def test_what_was_written_is_read_by_everybody(self, store: StateStore, again: Again) -> None:
        """The controller reads what the command line wrote."""
        one = Session.open(store, "a")
        one.put([(Table.RUNS, "r-1", {"phase": "pending"}), (Table.MARKS, "m", {"at": 1.5, "é": [None, {}]})])
        other = Session.open(again(), "b")
        assert other.rows(Table.RUNS) == {"r-1": {"phase": "pending"}}
        assert other.get(Table.MARKS, "m") == {"at": 1.5, "é": [None, {}]}

    def test_a_row_that_moved_is_not_overwritten(self, store: StateStore, again: Again) -> None:
        """Two people who apply at once must not lose each other's decisions."""
        mine, theirs = Session.open(store, "a"), Session.open(again(), "a")
        theirs.put([(Table.MODELS, "TrainingJob/a", {"by": "them"})])
        with pytest.raises(Conflict):
            mine.put([(Table.MODELS, "TrainingJob/a", {"by": "me"})])
        assert Session.open(again(), "c").get(Table.MODELS, "TrainingJob/a") == {"by": "them"}

    def test_other_rows_of_a_table_may_move(self, store: StateStore, again: Again) -> None:
        """A policy's new request does not disturb whoever writes the end of a run."""
        mine, theirs = Session.open(store, "a"), Session.open(again(), "a")
        theirs.put([(Table.RUNS, "theirs", {"n": 1})])
        mine.put([(Table.RUNS, "mine", {"n": 2})])
        assert set(Session.open(again(), "a").rows(Table.RUNS)) == {"mine", "theirs"}

    def test_a_removed_row_is_gone_and_can_be_made_again(self, store: StateStore, again: Again) -> None:
        """Removing is a write like any other: it is refused when the row moved."""
        one = Session.open(store, "a")
        one.put([(Table.REQUESTS, "q", {"n": 1})])
        late = Session.open(again(), "a")
        one.put([(Table.REQUESTS, "q", None)])
        with pytest.raises(Conflict):
            late.put([(Table.REQUESTS, "q", {"n": 2})])
        Session.open(again(), "a").put([(Table.REQUESTS, "q", {"n": 3})])
        assert Session.open(store, "a").get(Table.REQUESTS, "q") == {"n": 3}

    def test_who_was_replaced_writes_nothing(self, store: StateStore, again: Again) -> None:
        """A controller that slept through its lease wakes up and must not act on what it knew."""
        old, new = store, again()
        before = old.take("old")
        old.commit(before, [Put(Table.RUNS, "r", {"by": "old"}, 0)])
        token = new.take("new")
        assert token > before
        with pytest.raises(Fenced):
            old.commit(before, [Put(Table.RUNS, "r", {"by": "old again"}, 1)])
        with pytest.raises(Fenced):
            old.commit(before, [Put(Table.MARKS, "fresh", {"by": "old"}, 0)])
        new.commit(token, [Put(Table.RUNS, "r", {"by": "new"}, 1)])
        assert Session.open(again(), "x").get(Table.RUNS, "r") == {"by": "new"}
        assert Session.open(again(), "x").rows(Table.MARKS) == {}

    def test_one_row_that_moved_holds_back_all(self, store: StateStore, again: Again) -> None:
        """Half of a decision is none: what was written beside the row that moved was decided on the old one, too."""
        mine, theirs = Session.open(store, "a"), Session.open(again(), "a")
        theirs.put([(Table.RUNS, "b", {"by": "them"})])
        with pytest.raises(Conflict):
            mine.put([(Table.RUNS, name, {"by": "me"}) for name in ("a", "b", "c")])
        assert Session.open(again(), "a").rows(Table.RUNS) == {"b": {"by": "them"}}

    def test_the_same_holder_keeps_its_token(self, store: StateStore, again: Again) -> None:
        """A quiet driver writes nothing, also not that it is still there."""
        assert store.take("a") == store.take("a") == again().take("a")

    def test_who_was_replaced_can_take_over_again(self, store: StateStore, again: Again) -> None:
        """By a greater token, never by the one that it had."""
        first, second = store.take("a"), again().take("b")
        third = store.take("a")
        assert first < second < third
        store.commit(third, [Put(Table.RUNS, "r", {"n": 1}, 0)])
        for token in (first, second):
            with pytest.raises(Fenced):
                again().commit(token, [Put(Table.RUNS, "r", {"n": 2}, 1)])

    def test_what_a_caller_does_to_a_value_is_not_written(self, store: StateStore, again: Again) -> None:
        """A store that keeps rows in memory must not write what somebody has changed in place."""
        runs = ["r-1"]
        token = store.take("a")
        store.commit(token, [Put(Table.MODELS, "m", {"runs": runs}, 0)])
        runs.append("changed")
        store.commit(token, [Put(Table.MODELS, "second", {"n": 1}, 0)])
        store.read()[Table.MODELS]["m"].value["runs"].append("changed, too")
        store.commit(token, [Put(Table.MODELS, "third", {"n": 1}, 0)])
        assert Session.open(again(), "a").get(Table.MODELS, "m") == {"runs": ["r-1"]}

    def test_what_is_so_already_is_not_written(self, store: StateStore) -> None:
        """A quiet step has no writes."""
        one = Session.open(store, "a")
        one.put([(Table.RUNS, "r", {"n": 1})])
        two = Session.open(store, "a")
        two.put([(Table.RUNS, "r", {"n": 1}), (Table.RUNS, "none", None)])
        assert two.writes == 0
        assert two.token is None

    def test_many_rows_fit(self, store: StateStore, again: Again) -> None:
        """A project of years: rows of a few kilobytes that do not compress, far beyond one ConfigMap."""
        import random

        source = random.Random(1)
        one = Session.open(store, "a")
        rows = {f"r-{n}": {"noise": source.randbytes(1500).hex()} for n in range(1500)}
        for start in range(0, 1500, 300):
            names = list(rows)[start : start + 300]
            one.put([(Table.RUNS, name, rows[name]) for name in names])
        assert Session.open(again(), "a").rows(Table.RUNS) == rows
        one.put([(Table.RUNS, "r-7", None), (Table.RUNS, "r-1499", {"n": 1})])
        left = Session.open(again(), "a").rows(Table.RUNS)
        assert len(left) == 1499
        assert left["r-1499"] == {"n": 1}

    def test_everything_can_be_forgotten(self, store: StateStore, again: Again) -> None:
        """`destroy --purge`."""
        one = Session.open(store, "a")
        one.put([(Table.RUNS, "r", {"n": 1}), (Table.MODELS, "m", {"n": 1})])
        one.store.clear()
        assert all(not rows for rows in again().read().values())
        Session.open(again(), "b").put([(Table.RUNS, "r", {"n": 2})])
        assert Session.open(again(), "a").get(Table.RUNS, "r") == {"n": 2}

    def test_who_slept_through_the_end_brings_nothing_back(self, store: StateStore, again: Again) -> None:
        """A controller that is paused while a person purges the project, and maybe begins anew, is not part of either."""
        old, person = store, again()
        token = old.take("controller")
        old.commit(token, [Put(Table.RUNS, "r", {"n": 1}, 0)])
        person.clear()
        with pytest.raises(Fenced):
            old.commit(token, [Put(Table.RUNS, "s", {"n": 1}, 0)])
        assert all(not rows for rows in again().read().values())
        person.commit(person.take("person"), [Put(Table.RUNS, "new", {"n": 1}, 0)])
        with pytest.raises(Fenced):
            old.commit(token, [Put(Table.RUNS, "s", {"n": 1}, 0)])
        assert Session.open(again(), "x").rows(Table.RUNS) == {"new": {"n": 1}}
