"""MLflow as the record of a run: parameters, metrics, artifacts and model, under one MLflow run per identity.

An MLflow run carries the tag `mlspec.run`. `begin` ends what a killed process left RUNNING, so a restart leaves one live run;
`finish` sets FINISHED, once per identity, also when it is called again for the same MLflow run.

Importing MLflow takes about 2.7 s and the first use of an SQLite store 2.5 s (its migrations): only `train` comes here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

from mlspec_runtime.task import TaskError, exclusive

TAG = "mlspec.run"
SQLITE = "sqlite:///"
PARAM_LENGTH = 6000
"""MLflow's limit of a parameter's value."""


@dataclass(frozen=True, slots=True)
class Tracker:
    """An experiment of a tracking store."""

    client: Any
    experiment: str

    def begin(self, identity: str, tags: Mapping[str, str], parameters: Mapping[str, Any]) -> str:
        """Open an MLflow run for `identity` and end unfinished earlier ones as KILLED; returns the MLflow run's id."""
        for run in self._runs(identity):
            if run.info.status in ("RUNNING", "SCHEDULED"):
                self.client.set_terminated(run.info.run_id, "KILLED")
        run = self.client.create_run(self.experiment, run_name=identity, tags={**tags, TAG: identity})
        written = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in parameters.items()]
        self.client.log_batch(run.info.run_id, params=written)
        return str(run.info.run_id)

    def log(
        self, run: str, metrics: Mapping[str, float], folders: Mapping[str, Path], tags: Mapping[str, str]
    ) -> None:
        """Record metrics, tags, and files or folders under their artifact paths."""
        now = get_current_time_millis()
        values = [Metric(name, value, now, 0) for name, value in metrics.items()]
        self.client.log_batch(run, metrics=values, tags=[RunTag(key, value) for key, value in tags.items()])
        for name, path in folders.items():
            if path.is_dir():
                self.client.log_artifacts(run, str(path), name)
            else:
                self.client.log_artifact(run, str(path), name or None)

    def finish(self, identity: str, run: str) -> None:
        """Set the MLflow run FINISHED, and whatever else still runs under this identity KILLED."""
        for other in self._runs(identity):
            status = RunStatus.from_string(other.info.status)
            if other.info.run_id == run:
                if status != RunStatus.FINISHED:
                    self.client.set_terminated(run, "FINISHED")
            elif not RunStatus.is_terminated(status):
                self.client.set_terminated(other.info.run_id, "KILLED")

    def fail(self, run: str) -> None:
        """Set the MLflow run FAILED."""
        self.client.set_terminated(run, "FAILED")

    def _runs(self, identity: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment], f"tags.`{TAG}` = '{identity}'"))


def connect(uri: str, experiment: str, root: Path) -> Tracker:
    """Open the store, create the experiment if needed. Raises TaskError when the store cannot be reached.

    The first use of an SQLite store migrates it; processes take turns for that. Artifacts of such a store lie beside it.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    location = None
    lock = root / ".mlflow.lock"
    if uri.startswith(SQLITE):
        database = Path(uri.removeprefix(SQLITE)).absolute()
        location = (database.parent / "artifacts" / experiment).as_uri()
        lock = database.with_name(f".{database.name}.lock")
    try:
        with exclusive(lock):
            client = MlflowClient(uri)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                return Tracker(client, client.create_experiment(experiment, artifact_location=location))
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            return Tracker(client, found.experiment_id)
    except (MlflowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TaskError(
            f"MLflow at {uri} cannot be used: {reason}", "check `tracking` of the target"
        ) from None
