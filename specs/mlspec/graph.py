"""The shape of a serving graph: what each step takes, who answers, what runs in the shadow or instead, and in which order.

`mlspec.kinds.serving_graph` checks it when a spec is linked, `mlspec_runtime.serve.compile` builds a plan from it: one
module, so that what `validate` accepts is what runs.

* A step *takes* the steps in its `after`; without it what chose it, or else the request.
* A step that routers or splits name runs when one of them has chosen it; any other when something that it takes has run.
* A step that a split mirrors to runs in the *shadow*: after the answer. So does what takes only from the shadow.
* A step that is only named by `onError: {goto}` runs *instead* of the step that failed, and gives its output.
* The answer is that of `respond`, by default of the step that no other step takes; in branches, of the one that ran.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlspec import rules
from mlspec.diagnostics import Problem, listed
from mlspec.resource import Path

WAYS = 10_000
"""Combinations of branches that are looked at, at most."""


@dataclass(frozen=True, slots=True)
class Node:
    """What the shape depends on of a step. Names of steps may be of steps that do not exist."""

    after: tuple[str, ...] = ()
    chooses: tuple[tuple[str, Path], ...] = ()
    """Cases of a router or arms of a split, each with its place below the step."""
    mirrors: tuple[str, ...] = ()
    """Shadow steps of a split."""
    goto: str | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Steps in an order in which they can run, and the part that each of them plays."""

    order: tuple[str, ...]
    sources: Mapping[str, tuple[str, ...]]
    """What each step takes; nothing means the request, or for a fallback what the failed step had."""
    gated: frozenset[str]
    """Steps that run only when a router or split names them."""
    fallbacks: frozenset[str]
    """Steps that run only instead of a failed one."""
    shadow: frozenset[str]
    """Steps that run after the answer; fallbacks of such steps among them."""
    outcomes: Mapping[str, frozenset[str]]
    """Steps of the shadow that no other step takes, which is what its branches come to, with all of the shadow before them."""
    respond: tuple[str, ...]
    """The step that answers, or those of which one runs."""


def shape(nodes: Mapping[str, Node], respond: str | None) -> Shape | tuple[Problem, ...]:
    """The shape of these steps, or all that is wrong with it. `respond` is what the spec says."""
    if mistakes := tuple(_names(nodes, respond)):
        return mistakes
    graph = _Graph(nodes)
    if cycle := tuple(rules.steps_cycle(graph.before)):
        return cycle
    graph.sort()
    if wrong := tuple(_wrong(graph)):
        return wrong
    answering = (respond,) if respond is not None else graph.ends()
    if problems := tuple(_no_answer(graph, respond, answering)):
        return problems
    return Shape(
        tuple(graph.order),
        {name: tuple(sources) for name, sources in graph.takes.items()},
        frozenset(graph.choosers) | frozenset(graph.mirrored),
        frozenset(graph.instead),
        frozenset(graph.shadow),
        {name: frozenset(upstream([name], graph.before) & graph.shadow) for name in graph.ends(shadow=True)},
        answering,
    )


def upstream(names: Iterable[str], before: Mapping[str, Collection[str]]) -> set[str]:
    """These steps, and all that come before them."""
    found = set(names)
    pending = list(found)
    while pending:
        new = set(before[pending.pop()]) - found
        found |= new
        pending += new
    return found


class _Graph:
    """The relations between steps whose names are known."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self.choosers: dict[str, list[str]] = defaultdict(list)
        self.mirrored: dict[str, list[str]] = defaultdict(list)
        failing: dict[str, list[str]] = defaultdict(list)
        for name, node in nodes.items():
            for target in dict.fromkeys(target for target, _ in node.chooses):
                self.choosers[target].append(name)
            for target in dict.fromkeys(node.mirrors):
                self.mirrored[target].append(name)
            if node.goto is not None:
                failing[node.goto].append(name)
        self.instead = {
            name: steps
            for name, steps in failing.items()
            if name not in self.choosers and name not in self.mirrored
        }
        self.takes = {
            name: [*dict.fromkeys(node.after)] or self.choosers.get(name) or self.mirrored.get(name) or []
            for name, node in nodes.items()
        }
        self.before = {
            name: {*self.takes[name], *self.choosers.get(name, ()), *self.mirrored.get(name, ())}
            for name in nodes
        }
        for name, steps in failing.items():
            self.before[name] |= set(steps)
            for step in steps:  # what a fallback takes has run when it is needed
                self.before[step] |= set(nodes[name].after) - set(steps)
        self.order: list[str] = []
        self.shadow: set[str] = set()

    def sort(self) -> None:
        """Order the steps, depth first: what belongs to one branch stands together. Find the shadow."""
        done: set[str] = set()
        for root in self.nodes:
            pending = [(root, iter(self._earlier(root)))] if root not in done else []
            while pending:
                name, rest = pending[-1]
                following = next((one for one in rest if one not in done), None)
                if following is not None:
                    pending.append((following, iter(self._earlier(following))))
                    continue
                pending.pop()
                if name not in done:
                    done.add(name)
                    self.order.append(name)
        for name in self.order:
            if name in self.instead:
                hidden = all(step in self.shadow for step in self.instead[name])
            else:
                feeding = self.feeding(name)
                hidden = bool(feeding) and all(one in self.shadow for one in feeding)
            if hidden or name in self.mirrored:
                self.shadow.add(name)

    def _earlier(self, name: str) -> list[str]:
        return [one for one in self.nodes if one in self.before[name]]

    def feeding(self, name: str) -> list[str]:
        """The steps on which it depends whether a step runs."""
        return [*dict.fromkeys([*self.takes[name], *self.choosers.get(name, ())])]

    def is_main(self, name: str) -> bool:
        """Whether a step runs before the answer when nothing fails."""
        return name not in self.shadow and name not in self.instead

    def ends(self, shadow: bool = False) -> tuple[str, ...]:
        """The steps that could answer (or the same of the shadow): nobody takes them, and they choose nobody."""
        taken = {
            source
            for name, sources in self.takes.items()
            for source in sources
            if source not in self.instead.get(name, ())
        }
        return tuple(
            name
            for name in self.nodes
            if name not in taken
            and name not in self.instead
            and (name in self.shadow) is shadow
            and not self.nodes[name].chooses
        )

    def origins(self, chooser: str) -> frozenset[str]:
        """Where the columns come from that a router or split passes on."""
        pending, found = [chooser], set()
        while pending:
            name = pending.pop()
            if self.nodes[name].chooses and self.takes[name]:
                pending += self.takes[name]
            else:
                found.add(name if not self.nodes[name].chooses else "")
        return frozenset(found)


def _names(nodes: Mapping[str, Node], respond: str | None) -> Iterator[Problem]:
    uses: list[tuple[str, Path]] = []
    for name, node in nodes.items():
        path = ("spec", "steps", name)
        uses += [(target, (*path, *place)) for target, place in node.chooses]
        uses += [(source, (*path, "after", index)) for index, source in enumerate(node.after)]
        uses += [(target, (*path, "split", "shadow", index)) for index, target in enumerate(node.mirrors)]
        if node.goto is not None:
            uses.append((node.goto, (*path, "onError", "goto")))
        if node.goto == name:
            message = "the step goes to itself when it fails"
            yield Problem("cycle", message, (*path, "onError", "goto"), "name another step")
    if respond is not None:
        uses.append((respond, ("spec", "respond")))
    for name, place in uses:
        yield from rules.member(name, nodes, "no step is called", "unknown-step", place)


def _wrong(graph: _Graph) -> Iterator[Problem]:
    """Steps of which it is not clear when they run, or what they take."""
    for name in graph.nodes:
        yield from _both_sides(name, graph)
        yield from _fallback(name, graph)
        takes = graph.takes[name]
        if not graph.nodes[name].after and len({graph.origins(one) for one in takes}) > 1:
            message = f"{' and '.join(takes)} name {name}, but do not pass on the same"
            hint = "say with after: what it takes"
            yield Problem("ambiguous-step", message, ("spec", "steps", name), hint, on_key=True)


def _both_sides(name: str, graph: _Graph) -> Iterator[Problem]:
    """A step runs before the answer or after it."""
    path: Path = ("spec", "steps", name)
    if name in graph.mirrored and name in graph.choosers:
        splits, choosers = graph.mirrored[name], graph.choosers[name]
        message = f"{splits[0]} runs {name} in the shadow, but {choosers[0]} lets it answer"
        index = graph.nodes[splits[0]].mirrors.index(name)
        place: Path = ("spec", "steps", splits[0], "split", "shadow", index)
        yield Problem("shadow", message, place, "name another step with the same content")
        return
    feeding = graph.takes[name] if name in graph.mirrored else graph.feeding(name)
    feeding = [one for one in feeding if one not in graph.instead.get(name, ())]
    hidden = [one for one in feeding if one in graph.shadow]
    live = [one for one in feeding if one not in graph.shadow]
    # A fallback stands where the failed step stands; what runs in the shadow comes too late for the others.
    if not hidden or not (live or (name in graph.instead and name not in graph.shadow)):
        return
    other = f"from {live[0]}, which runs before it" if live else f"and stands in for {graph.instead[name][0]}"
    message = f"{name} takes from {hidden[0]}, which runs in the shadow after the answer, {'and ' if live else ''}{other}"
    after = graph.nodes[name].after
    place = (*path, "after", after.index(hidden[0])) if hidden[0] in after else path
    hint = "take from one side: from steps that run before the answer, or from steps of the shadow"
    yield Problem("shadow", message, place, hint, on_key=hidden[0] not in after)


def _fallback(name: str, graph: _Graph) -> Iterator[Problem]:
    """A fallback gives an output in the place of another step, and nothing else."""
    path: Path = ("spec", "steps", name)
    for index, source in enumerate(graph.nodes[name].after):
        if source in graph.instead:
            failing = graph.instead[source][0]
            message = f"{source} runs only instead of {failing}, when that fails"
            hint = f"write {failing}: it then has the output of {source}"
            yield Problem("fallback", message, (*path, "after", index), hint)
    goto = graph.nodes[name].goto
    if goto is None:
        return
    if graph.nodes[goto].chooses:
        message = f"{goto} chooses a step, which is no output in the place of {name}"
        yield Problem("fallback", message, (*path, "onError", "goto"), "go to a step that answers")
    elif goto in graph.mirrored:
        message = f"{goto} runs in the shadow and stands in for no step"
        yield Problem("fallback", message, (*path, "onError", "goto"), "name a step of its own")


def _no_answer(graph: _Graph, respond: str | None, answering: tuple[str, ...]) -> Iterator[Problem]:
    """One step answers, whatever is chosen; every other step feeds another one, or runs in the shadow."""
    place: Path = ("spec", "steps") if respond is None else ("spec", "respond")
    if respond is not None and respond in graph.shadow:
        hint = _who_can(graph)
        yield Problem("no-answer", f"{respond} runs in the shadow, after the answer", place, hint)
        return
    if respond is not None and respond in graph.instead:
        failing = graph.instead[respond][0]
        message = f"{respond} runs only instead of {failing}, when that fails"
        yield Problem("no-answer", message, place, f"write {failing}: it then has the output of {respond}")
        return
    if not answering:
        yield Problem("no-answer", "no step answers", place, _who_can(graph), on_key=True)
        return
    lost = []
    if respond is not None:
        useful = upstream([respond, *graph.instead, *graph.shadow], graph.before)
        lost = [name for name in graph.nodes if name not in useful and name not in graph.choosers]
    for name in lost:
        message = f"the output of {name} goes nowhere"
        hint = f"{respond} answers; list {name} in its after, or remove the step"
        yield Problem("unreachable-step", message, ("spec", "steps", name), hint, on_key=True)
    if not lost:
        yield from _ways(graph, respond, answering, place)


def _who_can(graph: _Graph) -> str:
    """The hint that names the steps with which the graph would answer."""
    able = [
        name
        for name in graph.nodes
        if graph.is_main(name) and not graph.nodes[name].chooses and not any(_no_answer(graph, name, (name,)))
    ]
    return (
        f"name the one that answers with respond: {listed(able)}" if able else "let one step take the others"
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """What is known of one way through the graph, as far as steps that are still to come depend on it."""

    ran: frozenset[str] = frozenset()
    chosen: frozenset[str] = frozenset()
    answered: tuple[str, ...] = ()
    """At most two."""


def _ways(graph: _Graph, respond: str | None, answering: tuple[str, ...], place: Path) -> Iterator[Problem]:
    """Whichever steps routers and splits choose, exactly one answers (the one that is named, or one of the ends)."""
    steps = [name for name in graph.order if graph.is_main(name)]
    needed = {source: index for index, name in enumerate(steps) for source in (*graph.takes[name], name)}
    ways: dict[_Way, tuple[tuple[str, str], ...]] = {_Way(): ()}
    for index, name in enumerate(steps):
        following: dict[_Way, tuple[tuple[str, str], ...]] = {}
        for way, choices in ways.items():
            takes = graph.takes[name]
            runs = (name not in graph.choosers or name in way.chosen) and (
                not takes or any(source in way.ran for source in takes)
            )
            answered = (*way.answered, name)[:2] if runs and name in answering else way.answered
            ran = frozenset(one for one in (*way.ran, *([name] if runs else [])) if needed[one] > index)
            chosen = way.chosen - {name}
            targets = dict.fromkeys(target for target, _ in graph.nodes[name].chooses) if runs else {}
            for target in targets or (None,):
                more, told = (
                    (chosen, choices) if target is None else (chosen | {target}, (*choices, (name, target)))
                )
                following.setdefault(_Way(ran, more, answered), told)
        ways = following
        if len(ways) > WAYS:
            message = (
                f"routers and splits that do not exclude each other can choose in more than {WAYS:,} ways"
            )
            yield Problem(
                "too-many-branches", message, ("spec", "steps", name), "combine some of them", on_key=True
            )
            return
    silent = next((choices for way, choices in ways.items() if not way.answered), None)
    if silent is not None:
        message = (
            f"no step answers{_when(silent)}" if respond is None else f"{respond} does not run{_when(silent)}"
        )
        hint = "let the step that answers take every branch, as in after: [ONE, OTHER]"
        yield Problem("no-answer", message, place, hint, on_key=respond is None)
    several = next(((way, choices) for way, choices in ways.items() if len(way.answered) > 1), None)
    if several is not None:
        way, choices = several
        message = (
            f"{' and '.join(way.answered)} could both answer{_when(choices)}"
            if choices
            else f"{len(answering)} steps could answer: {', '.join(answering)}"
        )
        yield Problem(
            "two-responders", message, ("spec", "steps", way.answered[1]), _who_can(graph), on_key=True
        )


def _when(choices: Sequence[tuple[str, str]]) -> str:
    """` when route chooses ten`; the first few choices."""
    words = " and ".join(f"{chooser} chooses {target}" for chooser, target in choices[:3])
    return f" when {words}{' and so on' if len(choices) > 3 else ''}" if words else ""
