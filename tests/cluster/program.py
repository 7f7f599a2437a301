"""A tiny program with the contract of `python -m mlspec_runtime`: `SUBJECT --task FILE --root ROOT`, standard library only.

Each start and each commit of a step leaves a line in `trace.log` below the root, so that tests can count them.
"""

import argparse
import fcntl
import http.server
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path


def write_json(path: Path, document: dict) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document))
    temporary.replace(path)


def trace(root: Path, word: str, task: dict) -> None:
    with (root / "trace.log").open("a") as file:
        file.write(f"{word} {task['name']} {task['step']} {os.getpid()} {time.time()}\n")


def work(subject: str, task: dict, root: Path, folder: Path) -> int:
    """`ok`: sleep, then commit. `wrong`: report a failure. `flaky`: die without a report, `times` times."""
    time.sleep(task.get("sleep", 0.0))
    if subject == "wrong":
        write_json(
            folder / "error.json",
            {"message": "no column x", "hint": "add it", "retry": task.get("retry", False)},
        )
        return 1
    if subject == "flaky":
        tries = folder / "tries"
        tries.write_text((tries.read_text() if tries.exists() else "") + "x")
        if len(tries.read_text()) <= task["times"]:
            print("something went wrong", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL) if task.get("signal") else os._exit(3)
    write_json(folder / "result.json", {"value": task.get("value", 1), "finished": time.time()})
    trace(root, "commit", task)
    return 0


def step(subject: str, task: dict, root: Path) -> int:
    folder = root / "runs" / task["name"] / task["step"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "result.json").exists() and not task.get("again"):
            return 0
        trace(root, "start", task)
        return work(subject, task, root, folder)


def serve(file: Path) -> int:
    """Answer with the document's `value`; not ready before `delay` seconds; ends at once when `die` is set."""
    task = json.loads(file.read_text())
    begun = time.monotonic()
    if task.get("die"):
        print("error: cannot load the model", file=sys.stderr, flush=True)
        return 7

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            told = json.loads(file.read_text())
            ready = time.monotonic() - begun >= told.get("delay", 0.0) and not told.get("unready")
            body = json.dumps({"value": told.get("value"), "pid": os.getpid()}).encode()
            self.send_response(200 if ready else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            return

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self.socket.bind(self.server_address)

    server = Server((task["host"], task["port"]), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.05)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("subject")
    parser.add_argument("--task", type=Path)
    parser.add_argument("--root", type=Path)
    arguments = parser.parse_args()
    if arguments.subject == "serve":
        return serve(arguments.task)
    return step(arguments.subject, json.loads(arguments.task.read_text()), arguments.root)


if __name__ == "__main__":
    raise SystemExit(main())
