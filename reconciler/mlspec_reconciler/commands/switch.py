"""`mlspec switch`: go back to the model that served before, without a commit."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from mlspec import lifecycle
from mlspec.kinds.serving_graph import ServingGraphSpec
from mlspec_reconciler import asking


@click.command()
@click.argument("graph")
@asking.options
def command(graph: str, reason: str, path: Path, target: str | None) -> int:
    """Let GRAPH answer with the model that served before. It ends with the next commit that changes what is trained, when a
    newer run is accepted, or with: mlspec withdraw.

    \b
    mlspec switch late-arrival --reason "wrong at night"
    """
    asked = asking.opened(path, target)
    name = asking.applied(asked, "ServingGraph", graph)
    resource = asked.found.wanted.project.catalog.find("ServingGraph", name)
    steps = cast(ServingGraphSpec, resource.spec).steps.values() if resource else ()
    models = [step.model for step in steps if step.model]
    ways: list[str] = []
    for model in models:
        kind = "Model" if f"Model/{model}" in asked.seen.compiled.lowered else "TrainingJob"
        lowered = asked.seen.compiled.lowered[f"{kind}/{model}"]
        life = lowered.life
        if life is None:
            pinned = lowered.note.partition(";")[0]
            ways.append(f"{model} is {pinned}, and a pin wins" if pinned else f"{model} follows no job")
        elif not life.serves:
            ways.append(f"{model} has no accepted run yet")
        elif name in life.switches:
            ways.append(f"{model} is switched away from {life.serves} already")
        elif not lifecycle.led_to(life.serves, life.memory):
            ways.append(f"nothing served before {life.serves}")
        else:
            one = asking.request(asked, "switch", name, lowered.recipe, reason, run=life.serves)
            asking.remember(asked, one)
            return 0
    click.echo(
        f"error[no-switch]: {name} cannot be switched: {'; '.join(ways) or 'it serves no model'}", err=True
    )
    return 1
