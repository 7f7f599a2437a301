"""The rights that the how-to pages name, for accounts of tests that have nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def rules(kind: str, *pages: str) -> list[dict[str, Any]]:
    """The rules of the Roles (or ClusterRoles) on these pages, for a project that is called `shop`."""
    blocks = [text for page in pages for text in BLOCK.findall((PAGES / page).read_text())]
    texts = (text.replace("tumours-runtime", "shop-runtime") for text in blocks)
    bodies = [body for text in texts for body in yaml.safe_load_all(text)]
    return [rule for body in bodies if body.get("kind") == kind for rule in body["rules"]]
