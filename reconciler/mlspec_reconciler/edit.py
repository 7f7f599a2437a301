"""Edits of spec files that keep comments, quotes and layout: the only importer of ruamel.yaml."""

from __future__ import annotations

import io
from collections.abc import Mapping

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from mlspec.ranges import DataUse, written
from mlspec.resource import moment


def move_data(text: str, job: str, data: Mapping[str, DataUse]) -> str:
    """The text of a spec file in which the TrainingJob `job` reads these ranges; unchanged when it has no such job."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    documents = list(yaml.load_all(text))
    for document in documents:
        if document and document.get("kind") == "TrainingJob" and document["metadata"]["name"] == job:
            for name, use in data.items():
                entry = document["spec"]["data"][name]
                for field, value in (("from", use.from_), ("to", use.to)):
                    if value is not None and field in entry:
                        entry[field] = DoubleQuotedScalarString(written(moment(value)))
    out = io.StringIO()
    yaml.dump_all(documents, out)
    return out.getvalue()
