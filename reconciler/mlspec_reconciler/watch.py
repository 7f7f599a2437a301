"""Watch a folder: the only importer of watchdog."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

QUIET = 0.2
"""Seconds without an event that end a burst; editors save in several steps."""
SUFFIXES = (".yaml", ".yml", ".py", ".csv", ".json", ".parquet", ".sql")


class _Queue(FileSystemEventHandler):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: queue.Queue[str] = queue.Queue()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.is_directory or event.event_type in ("opened", "closed_no_write"):
            return
        path = Path(str(event.dest_path or event.src_path))
        hidden = any(
            part.startswith(".")
            for part in path.relative_to(self.root).parts
            if path.is_relative_to(self.root)
        )
        if not hidden and path.suffix in SUFFIXES:
            self.events.put(str(path))


def changes(root: Path) -> Iterator[set[str]]:
    """Bursts of changed files below `root`, for ever."""
    handler = _Queue(root)
    observer = Observer()
    observer.schedule(handler, str(root), recursive=True)
    observer.start()
    try:
        while True:
            burst = {handler.events.get()}
            while True:
                try:
                    burst.add(handler.events.get(timeout=QUIET))
                except queue.Empty:
                    break
            yield burst
    finally:
        observer.stop()
        observer.join()
