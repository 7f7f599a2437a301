"""The story of `make demo`: a model of winter flights meets the summer, and the repository's specs take care of it.

Everything here is the product as its users run it: the command `mlspec`, HTTP requests, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MLSPEC = [sys.executable, "-m", "mlspec_reconciler.cli"]
JOB = "late-arrival"
START = "2013-04-01"
PERIODS, DAYS = 9, 14
SLOW = 0.1
"""Seconds between two requests while a model is trained, so that the switch is seen under load."""


class Demo:
    """The project in a folder of its own, so that nothing of the repository is touched."""

    def __init__(self, folder: Path, share: float) -> None:
        self.folder = folder
        self.share = share
        self.started = time.monotonic()
        self.messages: list[dict[str, Any]] = []
        self.environment = dict(os.environ)

    def say(self, words: str = "") -> None:
        """One line of the story, with the time since the start."""
        print(f"\n[{time.monotonic() - self.started:3.0f} s] {words}" if words else "", flush=True)

    def mlspec(self, *arguments: str, show: bool = True) -> str:
        """Run the command as a user would; its failure ends the demo."""
        if show:
            print(f"$ mlspec {' '.join(arguments)}", flush=True)
        with subprocess.Popen(
            [*MLSPEC, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if show else subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if show:
                    print(f"  {line}", end="", flush=True)
        if process.returncode != 0 and arguments[0] != "status":
            raise SystemExit(f"mlspec {arguments[0]} failed")
        return "".join(lines)

    def look(self) -> Status:
        """What `mlspec status` says, for programs."""
        document = json.loads(self.mlspec("status", "--output", "json", show=False))
        return Status(
            {one["resource"]: one for one in document["resources"]},
            {one["name"]: one["status"] for one in document["objects"]},
        )


@dataclass(frozen=True)
class Status:
    """Sentences by resource, and what the target says of each object."""

    resources: dict[str, Any]
    objects: dict[str, Any]

    @property
    def job(self) -> dict[str, Any]:
        """The line of the training job."""
        return dict(self.resources[f"TrainingJob/{JOB}"])

    @property
    def evaluation(self) -> dict[str, Any]:
        """The newest evaluation of the monitoring policy."""
        return dict(self.objects[f"{JOB}-monitor"].get("lastResult") or {})


def main() -> int:
    """Tell the story; exits with 1 when a part of it did not come true."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where the project is made anew")
    parser.add_argument("--share", type=float, default=0.25, help="share of the flights that ask")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute() / "flights"
    if (folder / ".mlspec").exists():
        subprocess.run(
            [*MLSPEC, "destroy", "--yes", "--purge"], cwd=folder, check=False, stdout=subprocess.DEVNULL
        )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        HERE, folder, ignore=shutil.ignore_patterns(".mlspec", "__pycache__", "demo.py", "replay.py")
    )
    demo = Demo(folder, arguments.share)
    with on_call(demo):
        try:
            return tell(demo)
        finally:
            if not arguments.keep:
                demo.mlspec("destroy", "--yes", show=False)
            outlook(demo, arguments.keep)


def tell(demo: Demo) -> int:
    """The story itself."""
    demo.say("Five files describe data, features, training, serving and monitoring. What would happen?")
    demo.mlspec("plan")
    demo.say(
        "Make it so: read 336,776 real flights of 2013, build features, train on January to March, serve."
    )
    demo.mlspec("apply", "--yes")
    demo.say("The same again changes nothing:")
    demo.mlspec("apply", "--yes")
    demo.say(
        f"Now passengers ask, two hours before departure, from April on ({demo.share:.0%} of all flights)."
    )
    return replay(demo)


def replay(demo: Demo) -> int:
    """Fortnight after fortnight through HTTP; ground truth arrives when the flights have landed."""
    import load
    import pandas as pd
    from replay import Passengers

    passengers = Passengers(demo.look().objects[JOB]["url"], JOB, load.flights(), demo.share)
    tally = passengers.tally
    told: list[str] = []
    training = False
    day = pd.Timestamp(START)
    for _ in range(PERIODS):
        since, until = str(day.date()), str((day + pd.Timedelta(days=DAYS)).date())
        for number, _moment in enumerate(passengers.ask(since, until)):
            if training:
                time.sleep(SLOW)
                training = number % 15 != 14 or demo.look().job["word"] == "runs"
        score = tally.auc(since, until)
        seen = wait_for(demo, passengers.asked)
        alerts = seen.evaluation.get("alerts", {}).values()
        firing = "; ".join(alert["sentence"] for alert in alerts if alert["state"] == "firing")
        print(
            f"  from {since}: auc {score:.3f}, {tally.requests:,} requests, {tally.failed} failed  {firing}",
            flush=True,
        )
        training = tell_news(demo, seen, told) or seen.job["word"] == "runs"
        day += pd.Timedelta(days=DAYS)
    return finish(demo, tally)


def tell_news(demo: Demo, seen: Status, told: list[str]) -> bool:
    """Say what the policy asked for and what became of it; whether a retraining has just been asked for."""
    asked = [one for one in seen.evaluation.get("triggers", []) if one["id"] not in told]
    for one in asked:
        told.append(one["id"])
        demo.say(f"The policy asks for a retraining: {one['reason']}")
    sentence = seen.job["sentence"]
    if sentence not in told and seen.job["word"] in ("failed", "ok"):
        told.append(sentence)
        print(f"  TrainingJob/{JOB}: {sentence}", flush=True)
    return bool(asked)


def wait_for(demo: Demo, asked: datetime) -> Status:
    """Give the policy the time that a fortnight would give it: until it has seen everything that was asked so far."""
    deadline = time.monotonic() + 30
    while True:
        status = demo.look()
        seen = status.evaluation.get("watermark")
        if (seen and datetime.fromisoformat(seen) >= asked) or time.monotonic() > deadline:
            return status
        time.sleep(0.2)


def finish(demo: Demo, tally: Any) -> int:
    """Say what came of it."""
    demo.say("How is everything?")
    demo.mlspec("status")
    demo.mlspec("runs", f"TrainingJob/{JOB}")
    demo.say("Did the service give the features that training would have seen?")
    demo.mlspec("features", JOB)
    print()
    print(
        f"  {tally.requests:,} requests, {tally.failed} failed; models that answered: {', '.join(tally.runs)}"
    )
    switched = len(tally.runs) > 1
    if switched:
        old, new = in_hindsight(demo.folder / ".mlspec" / "store", tally.runs)
        print(
            f"  flights since the switch: auc {new:.3f} with {tally.runs[-1]}, {old:.3f} had {tally.runs[0]} stayed"
        )
    for message in demo.messages:
        print(
            f"  notified oncall: {message.get('alert')} {message.get('state')}: {message.get('sentence', '')}"
        )
    complete = not tally.failed and switched and bool(demo.messages)
    if not complete:
        print("  The story is not complete: see the lines above.")
    return 0 if complete else 1


def in_hindsight(store: Path, runs: list[str]) -> tuple[float, float]:
    """Score of the first and of the newest model on the same logged requests: those that the newest one has answered."""
    import load
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    from mlspec_runtime import model

    log = pd.concat(pd.read_parquet(file) for file in sorted((store / "logs" / JOB).glob("*.parquet")))
    log = log[log["model"] == runs[-1]]
    delay = log["input.flight"].map(load.flights().set_index("flight")["arr_delay"])
    landed, late = delay.notna().to_numpy(), (delay > 15).to_numpy()
    scores = []
    for run in (runs[0], runs[-1]):
        one = model.load(store / "runs" / run / "train" / "model")
        columns = {field.name: log[f"feature.{field.name}"].to_numpy() for field in one.inputs}
        probability = one.predict(columns, len(log))["probability"]
        scores.append(float(roc_auc_score(late[landed], probability[landed])))
    return scores[0], scores[1]


def outlook(demo: Demo, kept: bool) -> None:
    """How to look further."""
    where = os.path.relpath(demo.folder)
    demo.say("Look further:")
    print(f"  cd {where}")
    if not kept:
        print("  mlspec apply          # starts everything again; nothing trains twice")
    print("  mlspec status         # one sentence for each resource")
    print(f"  mlspec logs TrainingJob/{JOB}")
    print("  mlflow ui --backend-store-uri sqlite:///.mlspec/mlflow.db")
    print("  mlspec destroy        # stops and removes everything that apply has made")


@contextmanager
def on_call(demo: Demo) -> Iterator[None]:
    """A webhook on this machine that plays the receiver `oncall`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            demo.messages.append(message)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    demo.environment["MLSPEC_ONCALL_URL"] = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield
    finally:
        server.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
