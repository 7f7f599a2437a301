"""How a kubeconfig context, or the service account of a pod, becomes a connection pool that is logged in.

The only module that imports the official client: it knows kubeconfigs, exec plugins and token files. Requests are ours
(`transport`), because its typed models reject and drop fields that they do not know. Importing it takes 0.4 s of CPU;
only commands that open a cluster do.
"""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import incluster_config, kube_config
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.exec_provider import ExecProvider
from urllib3.exceptions import InsecureRequestWarning

from mlspec_reconciler.cluster import Unavailable

_SERVICE_ACCOUNT = Path(incluster_config.SERVICE_TOKEN_FILENAME).parent
_THIS_MACHINE = ("localhost", "127.0.0.0/8", "::1")
_REFRESH = 10.0
"""Seconds between two looks at the credentials (a plugin's token may expire, a pod's token file is replaced)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one attempt uses. `generation` tells whether they are still the newest when the server refuses them."""

    pool: urllib3.PoolManager
    headers: tuple[tuple[str, str], ...]
    generation: int


class Login:
    """A context of a kubeconfig (None: the current one) or the service account of this pod. Safe to use from several threads.

    Raises `Unavailable`, with a way out, when the configuration is missing or broken or a login program fails.
    """

    def __init__(self, context: str | None, kubeconfig: Path | None, connections: int) -> None:
        self._kubeconfig = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or "~/.kube/config"
        self._connections = connections
        self._lock = threading.Lock()
        self._inside = context is None and kubeconfig is None and self._in_pod()
        if self._inside:
            self.context = "in-cluster"
            file = _SERVICE_ACCOUNT / "namespace"
            self.namespace = file.read_text().strip() if file.exists() else "default"
        else:
            self.context, self.namespace = _context(self._kubeconfig, context)
        self._generation = 0
        self._credentials: Credentials
        self._load()

    def credentials(self) -> Credentials:
        """What the next attempt uses."""
        with self._lock:
            if time.monotonic() - self._looked > _REFRESH:
                self._look()
            return self._credentials

    def refused(self, credentials: Credentials) -> bool:
        """The server answered 401 to these. True when there are others to try (a token was replaced or is renewed)."""
        with self._lock:
            if credentials.generation != self._generation:
                return True
            before = (credentials.headers, self._identity)
            self._load()
            return (self._credentials.headers, self._identity) != before

    def close(self) -> None:
        """Close idle connections."""
        self._credentials.pool.clear()

    def _in_pod(self) -> bool:
        files = self._kubeconfig.split(kube_config.ENV_KUBECONFIG_PATH_SEPARATOR)
        return (
            not any(Path(name).expanduser().exists() for name in files if name)
            and incluster_config.SERVICE_HOST_ENV_NAME in os.environ
        )

    def _load(self) -> None:
        """Read the configuration and open a new pool. Key files that the client unpacks live for this call only."""
        configuration = Configuration()
        configuration.connection_pool_maxsize = self._connections
        self._impersonation: list[tuple[str, str]] = []
        with tempfile.TemporaryDirectory(prefix="mlspec-") as private:
            if self._inside:
                try:
                    incluster_config.load_incluster_config(configuration)
                except (ConfigException, OSError) as error:
                    raise Unavailable(f"the service account of this pod cannot be used: {error}") from error
            else:
                self._read(configuration, private)
            self.server = configuration.host.rstrip("/")
            pool = self._pool(configuration)
        self._configuration = configuration
        self._generation += 1
        self._look(pool)

    def _read(self, configuration: Configuration, private: str) -> None:
        where = f"context {self.context} of {self._kubeconfig}"
        try:
            merged = kube_config.KubeConfigMerger(self._kubeconfig)
            loader = _Loader(
                config_dict=merged.config,
                active_context=self.context,
                config_base_path=None,
                config_persister=merged.save_changes,
                temp_file_path=private,
            )
            loader.load_and_set(configuration)
        except _LoginFailed as error:
            raise Unavailable(f"{where}: its login program failed: {error}; log in again") from error
        except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise Unavailable(f"{where} cannot be used: {_without_entries(error)}") from None
        if "server" not in loader._cluster:
            raise Unavailable(f"{where} names no server")
        user = loader._current_context["context"].safe_get("user")
        if user and loader._user is None:
            raise Unavailable(f"{where} names the user {user}, which is not there")
        if loader._user is not None:
            self._impersonation = _impersonation(loader._user.value)
        if "proxy-url" not in loader._cluster:
            # As Go does: a proxy of the environment is never asked for this machine.
            configuration.no_proxy = ",".join(filter(None, (configuration.no_proxy, *_THIS_MACHINE)))

    def _pool(self, configuration: Configuration) -> urllib3.PoolManager:
        """The client's pool (proxies, keep-alive), with one TLS context instead of key files read per connection."""
        configuration.keep_alive = True
        pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
        digest = hashlib.sha256(self.server.encode())
        if self.server.startswith("https"):
            options = pool.connection_pool_kw
            for name in ("cert_reqs", "ca_certs", "ca_cert_data", "cert_file", "key_file"):
                options.pop(name, None)
            options["ssl_context"] = _tls(configuration, self.context)
            for file in (configuration.ssl_ca_cert, configuration.cert_file):
                digest.update(Path(file).read_bytes() if file else b"-")
        self._identity = digest.hexdigest()
        return pool

    def _look(self, pool: urllib3.PoolManager | None = None) -> None:
        try:
            authorization = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        except _LoginFailed as error:
            message = f"context {self.context}: its login program failed: {error}; log in again"
            raise Unavailable(message) from error
        except (ConfigException, OSError) as error:
            message = f"context {self.context}: its token cannot be read: {_without_entries(error)}"
            raise Unavailable(message) from None
        self._looked = time.monotonic()
        headers = [*self._impersonation]
        if authorization:
            headers.append(("authorization", authorization.strip()))
        self._credentials = Credentials(pool or self._credentials.pool, tuple(headers), self._generation)

    @property
    def fingerprint(self) -> str:
        """Names the server with its CA and our certificate; not secret."""
        return self._identity


class _LoginFailed(Exception):
    """Escapes the client, which logs this failure and goes on as an anonymous user."""


class _Loader(kube_config.KubeConfigLoader):  # type: ignore[misc]
    def _load_from_exec_plugin(self) -> bool | None:
        if "exec" not in self._user:
            return None
        plugin = self._user["exec"]
        try:
            base = self._get_base_path(self._cluster.path)
            status: dict[str, Any] = ExecProvider(plugin, base, self._cluster).run()
        except FileNotFoundError as error:
            raise _LoginFailed(f"{plugin['command']} is not installed") from error
        except (ConfigException, OSError) as error:
            raise _LoginFailed(" ".join(str(error).split())[:300]) from error
        if "token" in status:
            self.token = f"Bearer {status['token']}"
        elif "clientCertificateData" in status and "clientKeyData" in status:
            self.cert_file = _file(status, "clientCertificateData", self._temp_file_path)
            self.key_file = _file(status, "clientKeyData", self._temp_file_path)
        else:
            raise _LoginFailed(f"{plugin['command']} gave neither a token nor a certificate with its key")
        if "expirationTimestamp" in status:
            self.expiry = kube_config.parse_rfc3339(status["expirationTimestamp"])
        return True


def _impersonation(user: dict[str, Any]) -> list[tuple[str, str]]:
    """Headers of `as`, `as-groups` and `as-uid`, which the client ignores: it would act with all our own rights."""
    headers = [("impersonate-user", user["as"])] if user.get("as") else []
    headers += [("impersonate-group", group) for group in user.get("as-groups") or ()]
    if user.get("as-uid"):
        headers.append(("impersonate-uid", user["as-uid"]))
    return headers


def _file(status: dict[str, Any], name: str, folder: str) -> str:
    path = Path(folder) / name
    path.touch(mode=0o600)
    path.write_text(status[name])
    return str(path)


def _context(kubeconfig: str, wanted: str | None) -> tuple[str, str]:
    """The name of the context and its namespace."""
    try:
        merged = kube_config.KubeConfigMerger(kubeconfig)
        entries = merged.config.value if merged.config is not None else None
    except (
        ConfigException,
        yaml.YAMLError,
        OSError,
        UnicodeDecodeError,
        TypeError,
        AttributeError,
        KeyError,
    ):
        raise Unavailable(f"{kubeconfig} is not a kubeconfig; see kubectl config view") from None
    if entries is None:
        raise Unavailable(
            f"no kubeconfig: {kubeconfig} does not exist and this is not a pod; set KUBECONFIG to one"
        )
    contexts = {entry.value["name"]: entry.value.get("context") or {} for entry in entries["contexts"]}
    known = ", ".join(sorted(contexts)) or "none"
    name = wanted or entries.get("current-context")
    if not name:
        raise Unavailable(f"{kubeconfig} has no current context; name one in the target: {known}")
    if name not in contexts:
        raise Unavailable(f"{kubeconfig} has no context {name}; it has: {known}")
    return name, contexts[name].get("namespace") or "default"


def _tls(configuration: Configuration, context: str) -> ssl.SSLContext:
    tls = ssl.create_default_context()
    # Certificate authorities of clusters often lack the extensions that Python 3.13 asks for and Go does not.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        if configuration.ssl_ca_cert:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            tls.load_verify_locations(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            tls.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (ssl.SSLError, OSError) as error:
        raise Unavailable(f"context {context}: its certificates cannot be used: {error}") from error
    if not configuration.verify_ssl:  # insecure-skip-tls-verify, which the owner of the kubeconfig chose
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
        urllib3.disable_warnings(InsecureRequestWarning)
    return tls


def _without_entries(error: Exception) -> str:
    """The client names a broken entry by its whole content, tokens included."""
    return str(error).split("{")[0].strip() or type(error).__name__


logging.getLogger("urllib3.connectionpool").setLevel(
    logging.ERROR
)  # it warns of each connection above its pool
