"""Materialise a Dataset: read the source, cast to the declared columns, check, write a snapshot known by its content.

    source --sources--> Arrow table --columns--> declared types --checks--> outcomes --snapshot--> datasets/<name>/<id>/

The step `dataset` of a run (see `mlspec_runtime.task`). The table is held in memory as Arrow columns; no row becomes a
Python object except the few that stand as examples in an error.
"""

from mlspec_runtime.dataset.run import run

__all__ = ["run"]
