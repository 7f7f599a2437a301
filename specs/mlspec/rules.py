"""Rules that several kinds share at link time: images, cron, time zones, parameters, lengths of names.

The `check` functions of `mlspec.kinds` and `mlspec.project` call them. Each yields problems with paths from the root.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from typing import Any
from zoneinfo import ZoneInfo

from mlspec.diagnostics import Problem, did_you_mean, listed
from mlspec.resource import Path, Resource, seconds

# Images


def image(name: str, path: Path) -> Iterator[Problem]:
    """A container image that stays the same: two pods of one run must not run different code."""
    tag = name.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in name and tag in ("", "latest"):
        yield Problem(
            "moving-image",
            f"the image {name} may be another one tomorrow, and no plan would show it",
            path,
            "name it by digest: NAME@sha256:..., or at least by a tag that stays",
            severity="warning",
        )


# Schedules

_CRON = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of the week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_CRON_PART = re.compile(r"(?:\*|(\w{1,3})(?:-(\w{1,3}))?)(?:/(\d{1,3}))?", re.ASCII)
_LAST_DAY = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
SHORTEST = 1.0
"""Seconds between two starts of anything, at least."""


def interval(text: str, path: Path) -> Iterator[Problem]:
    """The time between two starts. What takes longer than that is started once for all the starts that it missed."""
    if seconds(text) < SHORTEST:
        message = f"{text} is too often; nothing is started more than once a second"
        yield Problem("too-often", message, path, "write 1s or more")


def cron(text: str, path: Path) -> Iterator[Problem]:
    """A five-field cron expression that comes at all."""
    words = text.split()
    hint = 'minute, hour, day, month, weekday: "30 3 * * 1" is Monday 03:30 UTC'
    if len(words) != 5:
        yield Problem(
            "invalid-cron", f'"{text}" has {len(words)} fields; a cron expression has five', path, hint
        )
        return
    values: list[set[int]] = []
    for word, (name, low, high, names) in zip(words, _CRON, strict=True):
        found = _cron_values(word, low, high, names)
        if isinstance(found, str):
            yield Problem(
                "invalid-cron", found or f'"{word}" does not fit the {name} ({low} to {high})', path, hint
            )
        else:
            values.append(found)
    # Where days of the month and of the week are both given, either is enough.
    if (
        len(values) == 5
        and words[4] == "*"
        and min(values[2]) > max(_LAST_DAY.get(one, 31) for one in values[3])
    ):
        message = f'"{text}" never comes: there is no day {words[2]} in month {words[3]}'
        yield Problem("never-due", message, path, "every month has the days 1 to 28")


def _cron_values(word: str, low: int, high: int, names: tuple[str, ...]) -> set[int] | str:
    """The values that one field stands for, or what is wrong with it ("": a value that does not fit)."""
    values: set[int] = set()
    for part in word.lower().split(","):
        match = _CRON_PART.fullmatch(part)
        if match is None:
            return ""
        first, last, step = match.groups()
        start = low if first is None else _cron_value(first, low, names)
        end = _cron_value(last, low, names) if last else start if first and not step else high
        if not low <= start <= end <= high or (step and not int(step)):
            return ""
        if last and start == end:  # croniter takes it for the whole field
            return f'"{part}" is a range of one value; write {first}'
        values.update(range(start, end + 1, int(step or 1)))
    return values


def _cron_value(word: str, low: int, names: tuple[str, ...]) -> int:
    return names.index(word) + low if word in names else int(word) if word.isdecimal() else -1


def timezone(name: str, path: Path) -> Iterator[Problem]:
    """A time zone of the IANA database."""
    if not _is_timezone(name):
        yield Problem(
            "unknown-timezone", f'time zone "{name}" is unknown', path, 'such as "UTC" or "America/New_York"'
        )


@cache
def _is_timezone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


# Parameters


def parameters(
    given: Mapping[str, Any], schemas: Mapping[str, Any], function: str, path: Path
) -> Iterator[Problem]:
    """Arguments of a shared Function against its JSON Schemas."""
    for name, value in given.items() if schemas else ():
        if name not in schemas:
            message = f'{function} has no parameter "{name}"{did_you_mean(name, schemas)}'
            yield Problem("unknown-parameter", message, (*path, name), listed(schemas), on_key=True)
            continue
        for error in _validator(schemas[name]).iter_errors(value):
            yield Problem(
                "invalid-parameter",
                f"{name}: {error.message}",
                (*path, name, *error.absolute_path),
                f"see Function/{function}",
            )


def schema(value: Mapping[str, Any], path: Path) -> Iterator[Problem]:
    """A JSON Schema (2020-12)."""
    jsonschema = importlib.import_module("jsonschema")  # only projects with such schemas pay for it
    try:
        jsonschema.Draft202012Validator.check_schema(value)
    except jsonschema.SchemaError as error:
        yield Problem(
            "invalid-schema",
            f"not a JSON Schema: {error.message}",
            (*path, *error.absolute_path),
            "https://json-schema.org",
        )


def _validator(schema: Mapping[str, Any]) -> Any:
    return importlib.import_module("jsonschema").Draft202012Validator(schema)


# Times and numbers


def ordered(low: Any, high: Any, low_name: str, high_name: str, path: Path) -> Iterator[Problem]:
    """Two bounds in their order."""
    if low is not None and high is not None and low > high:
        message = f"{low_name} {low:g} is greater than {high_name} {high:g}"
        yield Problem("empty-range", message, (*path, low_name), f"exchange {low_name} and {high_name}")


def member(
    name: str, known: Collection[str], what: str, code: str, path: Path, on_key: bool = False
) -> Iterator[Problem]:
    """A name that must be one of `known`."""
    if name not in known:
        message = f'{what} "{name}"{did_you_mean(name, known)}'
        yield Problem(code, message, path, listed(known), on_key=on_key)


def steps_cycle(edges: Mapping[str, Iterable[str]]) -> Iterator[Problem]:
    """Steps that wait for each other; edges to unknown steps are left to `member`."""
    try:
        TopologicalSorter(
            {name: [one for one in before if one in edges] for name, before in edges.items()}
        ).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        words = " -> ".join(cycle)
        hint = "remove one of these references"
        yield Problem(
            "cycle", f"steps wait for each other: {words}", ("spec", "steps", cycle[0]), hint, on_key=True
        )


# Lengths of names

_BUDGETS: dict[str, tuple[str, int, int]] = {
    "Dataset": ("Workflow data-NAME-HASH, which is a label of its pods", 63, 14),
    "FeatureSet": ("Workflow features-NAME-HASH, which is a label of its pods", 63, 18),
    "TrainingJob": ("Workflow NAME-HASH, which is a label of its pods", 63, 9),
    "MonitoringPolicy": ("CronWorkflow NAME-monitor", 52, 8),
    "Pipeline": ("CronWorkflow NAME", 52, 0),
    "torch": ("JobSet NAME-HASH and the pods NAME-HASH-node-0-0-xxxxx", 63, 24),
    "mpi": ("MPIJob NAME-HASH and the pods NAME-HASH-launcher", 63, 18),
    "dask": ("DaskJob NAME-HASH and the service NAME-HASH-scheduler", 63, 19),
    "spark": ("SparkApplication NAME-HASH and the service NAME-HASH-driver-svc", 63, 20),
    "ray": ("RayJob NAME-HASH", 47, 9),
}
"""Kind or engine -> what its name becomes on Kubernetes, the limit there, and what we add to it.

Labels and host names have 63 characters (RFC 1123); Argo appends 11 to a CronWorkflow, KubeRay 16 to a RayJob.
"""


def name_length(resource: Resource, on_kubernetes: bool) -> Iterator[Problem]:
    """The name must leave room for what engines append to it."""
    engine = getattr(getattr(resource.spec, "engine", None), "choice", "")
    entry = _BUDGETS.get(engine) or _BUDGETS.get(resource.kind)
    if entry is None:
        return
    becomes, limit, added = entry
    if len(resource.name) > limit - added:
        message = f"the name has {len(resource.name)} characters; {limit - added} fit on Kubernetes"
        hint = f"it becomes {becomes}"
        yield Problem(
            "name-length", message, ("metadata", "name"), hint, "error" if on_kubernetes else "warning"
        )


def longest_name(kind: str) -> int:
    """The longest name of a kind that fits on Kubernetes with the default engine."""
    _, limit, added = _BUDGETS.get(kind, ("", 63, 0))
    return limit - added
