"""Code on its way into a bucket, where pods pull what is too large to travel with the objects. Called by `workspace.stage`,
before anything is applied: an object that is made names code that is there.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlspec_reconciler.cluster import Unavailable
from mlspec_storage import Bucket, Refused


def upload(url: str, folders: Mapping[str, Mapping[str, bytes]]) -> None:
    """Put folders (`code/<digest>` -> files) below `url`; a file that is there has the same content and is skipped.

    Raises `Unavailable` with the way out when the bucket cannot be written.
    """
    bucket = Bucket(url, timeout=20.0, attempts=3)
    try:
        for folder, files in folders.items():
            there = set(bucket.paths(folder))
            for name, content in files.items():
                if f"{folder}/{name}" not in there:
                    bucket.create(f"{folder}/{name}", content)
    except Refused as error:
        words = f"the code cannot be put into {url}: {error.message}; {error.hint}"
        raise Unavailable(words) from None
