"""The two MLflow flavours that models are saved in. Importing this module imports MLflow."""

import os
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import pandas as pd

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow.pyfunc
import mlflow.sklearn
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import ColSpec, Schema

from mlspec_runtime import model

TYPES: dict[str, str] = {
    "BOOL": "boolean", "INT8": "integer", "INT16": "integer", "INT32": "integer", "INT64": "long", "UINT8": "integer",
    "UINT16": "integer", "UINT32": "long", "UINT64": "long", "FP32": "float", "FP64": "double", "BYTES": "string",
}  # fmt: skip


def sklearn(estimator: Any, manifest: model.Manifest, folder: Path, requirements: list[str]) -> None:
    """MLflow's sklearn flavour, pickled: skops, its default, cannot hold the user's own classes."""
    mlflow.sklearn.save_model(
        estimator,
        str(folder),
        serialization_format="cloudpickle",
        signature=_signature(manifest),
        pip_requirements=requirements,
    )


class Pickled(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Any object with `predict`, for MLflow; serving reads the artifact without this class."""

    def load_context(self, context: Any) -> None:
        """Unpickle the object."""
        with open(context.artifacts["model"], "rb") as file:  # noqa: PTH123 (pickled by value: few globals)
            self.model = pickle.load(file)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """The object's own prediction."""
        return self.model.predict(model_input)


def pyfunc(estimator: Any, manifest: model.Manifest, folder: Path, requirements: list[str]) -> None:
    """A pyfunc whose artifact is the pickle of the object."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / Path(manifest.file).name
        file.write_bytes(cloudpickle.dumps(estimator))
        with warnings.catch_warnings(record=True):  # MLflow asks for an example; the signature says it all
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=Pickled(),
                artifacts={"model": str(file)},
                signature=_signature(manifest),
                pip_requirements=[f"mlflow=={mlflow.__version__}", *requirements],
            )


def _signature(manifest: model.Manifest) -> Any:
    return ModelSignature(
        inputs=Schema([ColSpec(TYPES[item.datatype], item.name) for item in manifest.inputs])
    )
