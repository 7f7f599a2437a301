"""The last step of the image build: import every module of the runtime, so that a missing library fails the build, not a pod."""

from __future__ import annotations

import importlib
import pkgutil

import mlspec
import mlspec_runtime
import mlspec_storage

for package in (mlspec, mlspec_runtime, mlspec_storage):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
