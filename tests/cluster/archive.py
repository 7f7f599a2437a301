"""Argo's artifact repository in an S3 server of the tests: where logs of steps outlive their pods.

Facts: https://argo-workflows.readthedocs.io/en/release-3.7/artifact-repository-ref/ and .../fields/#s3artifact
"""

from __future__ import annotations

from typing import Any

import yaml

from cluster.bed.api import Document, document
from s3 import S3

SECRET = "archive"


def credentials(namespace: str, server: S3) -> Document:
    """The Secret by which Argo reads and writes a bucket."""
    data = {"id": server.environment["AWS_ACCESS_KEY_ID"], "key": server.environment["AWS_SECRET_ACCESS_KEY"]}
    return document("v1", "Secret", SECRET, namespace, stringData=data)


def location(server: S3, bucket: str) -> dict[str, Any]:
    """A bucket as Argo names it."""
    return {
        "bucket": bucket,
        "endpoint": f"{server.host}:{server.port}",
        "insecure": True,
        "accessKeySecret": {"name": SECRET, "key": "id"},
        "secretKeySecret": {"name": SECRET, "key": "key"},
    }


def repository(namespace: str, server: S3, bucket: str) -> list[Document]:
    """What the platform team makes so that every Workflow of the namespace archives its logs."""
    of_namespace: Document = {
        "annotations": {"workflows.argoproj.io/default-artifact-repository": "logs"},
    }
    content = yaml.safe_dump({"archiveLogs": True, "s3": location(server, bucket)})
    repositories = document(
        "v1",
        "ConfigMap",
        "artifact-repositories",
        namespace,
        metadata=of_namespace,
        data={"logs": content},
    )
    return [credentials(namespace, server), repositories]
