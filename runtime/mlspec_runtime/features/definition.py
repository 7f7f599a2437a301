"""Specs of feature sets and views as plans: the SQL to evaluate per row, and the aggregates to take over windows.

Both ways to features (`join`, `online`) read the same plan, so they cannot disagree about a definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlspec import expressions
from mlspec.expressions import Expression, identifier
from mlspec.kinds.dataset import DatasetSpec
from mlspec.kinds.feature_set import Feature, FeatureSetSpec
from mlspec.kinds.feature_view import FeatureViewSpec
from mlspec.resource import seconds
from mlspec_runtime.task import TaskError

EVENT, KNOWN, ID = "__event", "__known", "__id"
"""Columns of events.parquet beside the key and the inputs: int64 microseconds UTC twice, and the event's identity."""
NUMERIC = frozenset({"mean", "sum", "stddev"})
WHOLE = frozenset({"count", "distinct"})


@dataclass(frozen=True, slots=True)
class Window:
    """`[t - length, t)`, or `[floor(t - length, hop), t)`; microseconds."""

    length: int
    hop: int = 0

    def start(self, moment: int) -> int:
        """First event time that still counts for a question at `moment`."""
        start = moment - self.length
        return start // self.hop * self.hop if self.hop else start


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One feature: `op` of the input column `column` ("" counts rows); without a window over all history."""

    name: str
    op: str
    column: str
    window: Window | None


@dataclass(frozen=True, slots=True)
class SetPlan:
    """A FeatureSet: its key, its inputs (`v0`, `v1`, ... -> expression) and its aggregates by name."""

    key: tuple[str, ...]
    where: Expression | None
    inputs: Mapping[str, Expression]
    aggregates: tuple[Aggregate, ...]


@dataclass(frozen=True, slots=True)
class RowUse:
    """One feature computed from the asking row."""

    name: str
    expression: Expression


@dataclass(frozen=True, slots=True)
class SetUse:
    """Features of one set: output name -> aggregate; `key` are expressions of the asking row in the order of the set's key."""

    set: str
    plan: SetPlan
    key: tuple[Expression, ...]
    max_age: int | None
    features: tuple[tuple[str, Aggregate], ...]


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """A FeatureView: the moment of the question, the label, and the features in the view's order."""

    at: Expression | None
    """None: the event time of the asking dataset."""
    event: str | None
    label: Expression | None
    uses: tuple[RowUse | SetUse, ...]
    names: tuple[str, ...]

    @property
    def columns(self) -> frozenset[str]:
        """Columns of the asking row that a question needs (the label's are not among them)."""
        needed = set(self.at.columns) if self.at else ({self.event} if self.event else set())
        for use in self.uses:
            for one in (use.expression,) if isinstance(use, RowUse) else use.key:
                needed |= one.columns
        return frozenset(needed)


def microseconds(duration: str) -> int:
    """A duration of the spec language in microseconds."""
    return round(seconds(duration) * 1_000_000)


def expression(text: str, place: str) -> Expression:
    """Parse and check one expression; TaskError names `place` if it is not allowed."""
    parsed = expressions.parse(text)
    if parsed.problem is not None:
        raise TaskError(f"{place}: {parsed.problem}: {text}", parsed.hint)
    return parsed


def set_plan(spec: FeatureSetSpec) -> SetPlan:
    """The plan of a set, by the names of its features: the order of keys in YAML or JSON never changes a stored column.

    Equal input expressions are lifted once.
    """
    inputs: dict[str, Expression] = {}
    names: dict[str, str] = {}
    aggregates = []
    hop = microseconds(spec.hop) if spec.hop else 0
    for name, given in sorted(spec.features.items()):
        feature = given if isinstance(given, Feature) else Feature.model_validate({"last": given})
        op, text = feature.choice, str(getattr(feature, feature.choice))
        column = ""
        if not (op == "count" and text.strip() == "*"):
            parsed = expression(text, f"feature {name}")
            column = names.setdefault(parsed.sql, f"v{len(names)}")
            inputs[column] = parsed
        if feature.window is None and op != "last":
            raise TaskError(
                f"feature {name}: {op} needs a window; only last may go without",
                f"write {{{op}: ..., window: 1d}}",
            )
        window = Window(microseconds(feature.window), hop) if feature.window else None
        if window is not None and window.length <= 0:
            raise TaskError(f"feature {name}: a window of {feature.window} holds nothing", "make it longer")
        aggregates.append(Aggregate(name, op, column, window))
    where = expression(spec.where, "where") if spec.where else None
    return SetPlan(tuple(spec.key), where, inputs, tuple(aggregates))


def view_plan(spec: FeatureViewSpec, ask: DatasetSpec | None, sets: Mapping[str, FeatureSetSpec]) -> ViewPlan:
    """The plan of a view over its sets; `ask` is the spec of the asking dataset."""
    uses: list[RowUse | SetUse] = []
    for group in spec.features:
        if group.row is not None:
            uses += [
                RowUse(group.prefix + name, expression(text, f"row feature {name}"))
                for name, text in sorted(group.row.items())
            ]
            continue
        assert group.set is not None
        if group.set not in sets:
            raise TaskError(f"the view needs the FeatureSet {group.set}", f"have {', '.join(sets) or 'none'}")
        plan = set_plan(sets[group.set])
        known = {one.name: one for one in plan.aggregates}
        wanted = group.names if group.names is not None else list(known)
        missing = [name for name in wanted if name not in known]
        if missing:
            raise TaskError(f"{group.set} has no feature {missing[0]}", f"it has {', '.join(known)}")
        stray = [column for column in group.key if column not in plan.key]
        if stray:
            raise TaskError(
                f"{stray[0]} is no key column of {group.set}", f"its key is {', '.join(plan.key)}"
            )
        key = tuple(
            expression(group.key.get(column, identifier(column)), f"key {column} of {group.set}")
            for column in plan.key
        )
        max_age = microseconds(group.max_age) if group.max_age else None
        features = tuple((group.prefix + name, known[name]) for name in wanted)
        uses.append(SetUse(group.set, plan, key, max_age, features))
    names = [
        name
        for use in uses
        for name in ([use.name] if isinstance(use, RowUse) else [out for out, _ in use.features])
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TaskError(f"the view has two features called {twice}", "give one group a `prefix`")
    event = ask.time.event if ask is not None and ask.time is not None else None
    at = expression(spec.ask.at, "ask.at") if spec.ask.at else None
    if at is None and event is None:
        raise TaskError(
            f"nothing says when a row of {spec.ask.dataset} asks",
            "give the dataset a `time`, or the view `ask: {at: ...}`",
        )
    label = expression(spec.label, "label") if spec.label else None
    return ViewPlan(at, event, label, tuple(uses), tuple(names))
