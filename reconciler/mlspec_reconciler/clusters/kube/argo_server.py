"""An Argo Server beside the API server: it keeps the logs of pods that are gone, and starts a failed Workflow again where it
failed. The only importer of Argo's client; targets without a server need neither.

The client's typed answers reject what its own server sends (https://github.com/argoproj/argo-workflows/issues/9122), so
they are read as plain JSON.
API: https://argo-workflows.readthedocs.io/en/release-3.7/rest-api/
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import urllib3
from argo_workflows.api.artifact_service_api import ArtifactServiceApi
from argo_workflows.api.workflow_service_api import WorkflowServiceApi
from argo_workflows.api_client import ApiClient
from argo_workflows.configuration import Configuration
from argo_workflows.exceptions import ApiException
from argo_workflows.model.io_argoproj_workflow_v1alpha1_workflow_retry_request import (
    IoArgoprojWorkflowV1alpha1WorkflowRetryRequest,
)
from argo_workflows.model.io_argoproj_workflow_v1alpha1_workflow_stop_request import (
    IoArgoprojWorkflowV1alpha1WorkflowStopRequest,
)

from mlspec_reconciler.cluster import Refused, Unavailable

TOKEN = "ARGO_TOKEN"
"""Environment variable of Argo's own command: `Bearer ...`."""
LOG = "main-logs"
"""The artifact that a log becomes: https://argo-workflows.readthedocs.io/en/release-3.7/configure-archive-logs/"""
_TIMEOUT = (10.0, 60.0)
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_LOGIN = "the Argo Server takes the token of the kubeconfig, or that of ARGO_TOKEN (Bearer ...)"


class ArgoServer:
    """The Workflows of one namespace. `authorization`: the header that logs in to the API server, empty when a certificate
    does. Opens no connection."""

    def __init__(self, server: str, namespace: str, authorization: Callable[[], str]) -> None:
        self.server = server.rstrip("/")
        self._namespace = namespace
        self._authorization = authorization
        self._logs: dict[tuple[str, str], str] = {}
        configuration = Configuration(host=self.server)
        configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        configuration.retries = urllib3.Retry(
            3, redirect=0, status=0, backoff_factor=0.3, allowed_methods=["GET"]
        )
        # The client reads no environment; Argo's own command and the login to the API server do.
        proxies = getproxies()
        configuration.proxy = proxies.get(urlsplit(self.server).scheme)
        configuration.no_proxy = ",".join(filter(None, (proxies.get("no"), *_THIS_MACHINE)))
        self._client = ApiClient(configuration)
        self._workflows, self._artifacts = WorkflowServiceApi(self._client), ArtifactServiceApi(self._client)

    def close(self) -> None:
        """Close idle connections."""
        self._client.rest_client.pool_manager.clear()

    def stop(self, name: str, message: str) -> None:
        """Shut a Workflow down. Raises `Refused` when it is not under way, `Unavailable` without an answer."""
        body = IoArgoprojWorkflowV1alpha1WorkflowStopRequest(
            name=name, namespace=self._namespace, message=message
        )
        self._call(f"Workflow {name}", self._workflows.stop_workflow, self._namespace, name, body)

    def retry(self, name: str) -> None:
        """Start a failed Workflow again; its steps that have succeeded stay. Raises as `stop`."""
        body = IoArgoprojWorkflowV1alpha1WorkflowRetryRequest(name=name, namespace=self._namespace)
        self._call(f"Workflow {name}", self._workflows.retry_workflow, self._namespace, name, body)

    def log(self, name: str, node: str) -> str:
        """What a node of a Workflow has printed, from Argo's archive, which is asked once. Raises as `stop`."""
        if (name, node) in self._logs:
            return self._logs[name, node]
        what = f"the archived log of {node}"
        answer = self._call(what, self._artifacts.get_output_artifact, self._namespace, name, node, LOG)
        return self._logs.setdefault((name, node), answer.decode(errors="replace"))

    def _call(self, what: str, method: Callable[..., Any], *arguments: Any) -> bytes:
        self._client.set_default_header("Authorization", self._login())
        try:
            answer = method(*arguments, _preload_content=False, _request_timeout=_TIMEOUT)
            return bytes(answer.data)
        except ApiException as error:
            raise self._refused(what, error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"the Argo Server {self.server} does not answer: {_reason(error)}") from None
        except (AttributeError, UnicodeDecodeError) as error:
            # The client decodes the body of every refusal, also where there is none.
            if not isinstance(error.__context__, ApiException):
                raise
            said = _message(error.__context__.reason)
            raise Unavailable(f"the Argo Server {self.server} cannot be asked: {said}") from None

    def _login(self) -> str:
        """The header that logs in. What cannot stand in one is refused here: http.client would repeat it in its error."""
        own = os.environ.get(TOKEN, "").strip()
        found = own or self._authorization()
        if not found:
            words = "the context logs in with a certificate, which the Argo Server does not take"
            raise Refused(f"{words}: set ARGO_TOKEN to the token of an account (Bearer ...)")
        if not (found.isascii() and found.isprintable()):
            where = TOKEN if own else "the token of the kubeconfig"
            raise Refused(f"{where} holds characters that no token has; it is one line, such as: Bearer ...")
        return found

    def _refused(self, what: str, error: ApiException) -> Refused | Unavailable:
        """Of an answer the status and what it says, never its headers nor ours."""
        message = _message(error.body)
        match error.status:
            case 401 | 403:
                return Refused(f"the Argo Server {self.server} does not permit it: {message}; {_LOGIN}")
            case 404:
                return Refused(f"the Argo Server {self.server} does not know {what}: {message}")
            case 429 | 502 | 503 | 504:
                return Unavailable(f"the Argo Server {self.server} answered {error.status}: {message}")
        return Refused(f"the Argo Server {self.server} refuses: {message}")


def _message(body: Any) -> str:
    """What an error document says: `{"code": 5, "message": ...}`, or plain text."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    said = str(document.get("message") or "") if isinstance(document, dict) else text
    return " ".join(said.split())[:300] or "it does not say why"


def _reason(error: Exception) -> str:
    """The last cause: the client wraps what happened in its own words."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, Exception):
        return _reason(reason)
    return " ".join(str(error).split("): ")[-1].split())[:200] or type(error).__name__
