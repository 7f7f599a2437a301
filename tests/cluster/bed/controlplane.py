"""Layer 1 of the bed: etcd, API server, controller-manager and scheduler, as processes on loopback.

A real API server: admission, CEL, defaulting, RBAC, server-side apply, watches. No node: `kwok` plays them (layer 2),
`node` runs a real one (layer 3).

    with ControlPlane.start(tmp_path) as plane:
        namespace = plane.namespace("churn")
        token = plane.service_account(namespace, "reader", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}])
        plane.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": namespace}}])
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import httpx
import yaml

from cluster.bed import build
from cluster.bed.api import Api, Document, document
from cluster.bed.certificates import Authority, signing_keys
from cluster.bed.processes import Server, free_ports, wait_for

BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
CONTEXT = "bed"
ADMIN_TOKEN = "admin-of-the-test-bed"
SERVICE_NETWORK = "10.0.0.0/16"
"""Room for the thousands of Services of the benchmarks."""
FIRST_SERVICE = "10.0.0.1"
ADVERTISED = "198.18.0.1"
"""Of the benchmark range (RFC 2544). Without an address the API server looks for a default route, and may find none; a
loopback address is refused as an endpoint."""


class ControlPlane:
    """A running control plane. Make one with `start`; use it as a context manager or call `stop`."""

    def __init__(self, folder: Path, authority: Authority, url: str) -> None:
        self.folder = folder
        self.authority = authority
        self.url = url
        self.admin_token = ADMIN_TOKEN
        self.ca_file = authority.pair.certificate
        self.servers: dict[str, Server] = {}
        self._numbers = itertools.count(1)
        self.kubeconfig = self.kubeconfig_for(ADMIN_TOKEN)
        self.api = Api(url, self.ca_file, ADMIN_TOKEN)

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        bind_address: str = "127.0.0.1",
        advertise_address: str = ADVERTISED,
        extra_names: Sequence[str] = (),
        api_server_arguments: Sequence[str] = (),
        controller_manager_arguments: Sequence[str] = (),
        scheduler_arguments: Sequence[str] = (),
    ) -> ControlPlane:
        """Start all four and wait until pods can be created; about 4 s.

        Args:
            folder: for data, certificates, kubeconfigs and logs; it may be new.
            bind_address: where the API server listens; `0.0.0.0` when pods have to reach it.
            advertise_address: its address for pods: the endpoint of the Service `kubernetes`.
            extra_names: DNS names and addresses for its certificate, beside the usual ones.

        Raises:
            build.Unavailable: no binaries and no Go to build them.
            StartFailed: a process ended or did not become ready; its log is in the message and in `folder`/logs.
        """
        binaries = {name: build.binary(name) for name in BINARIES}
        folder.mkdir(parents=True, exist_ok=True)
        etcd_port, peer_port, api_port = free_ports(3)
        plane = cls(folder, Authority.create(folder / "pki"), f"https://127.0.0.1:{api_port}")
        try:
            plane._start_etcd(binaries["etcd"], etcd_port, peer_port)
            plane._start_api_server(
                [
                    binaries["kube-apiserver"],
                    f"--etcd-servers=http://127.0.0.1:{etcd_port}",
                    f"--bind-address={bind_address}",
                    f"--advertise-address={advertise_address}",
                    f"--secure-port={api_port}",
                    *api_server_arguments,
                ],
                [advertise_address, *extra_names],
            )
            plane._start_controllers(
                [binaries["kube-controller-manager"], *controller_manager_arguments],
                [binaries["kube-scheduler"], *scheduler_arguments],
            )
        except BaseException:
            plane.stop()
            raise
        return plane

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop every process, the last one started first. A second call does nothing."""
        for server in reversed(self.servers.values()):
            server.stop()
        self.api.close()

    def restart(self, name: str) -> None:
        """Kill one of `servers` and start it again; an API server comes back with its data and on its port."""
        server = self.servers[name]
        server.stop()
        server.start()
        if name == "kube-apiserver":
            server.wait_until(self.api.ready)

    def run(self, server: Server) -> Server:
        """Start another process (a controller, KWOK) that ends with this control plane."""
        self.servers[server.name] = server
        server.start()
        return server

    def apply(self, documents: Iterable[Document]) -> list[Document]:
        """Server-side apply as the admin, see `Api.apply`; the live objects."""
        return self.api.apply(documents)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """What kubectl prints, as the admin.

        Raises: subprocess.CalledProcessError with kubectl's error in `stderr` and in its notes, unless `check` is off.
        """
        done = subprocess.run(
            [
                build.binary("kubectl"),
                f"--kubeconfig={self.kubeconfig}",
                f"--cache-dir={self.folder / 'kubectl'}",
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            error = subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
            error.add_note(done.stderr)
            raise error
        return done.stdout

    def kubeconfig_for(self, token: str, namespace: str = "default") -> Path:
        """A kubeconfig file for the owner of `token`, its one context is `bed`."""
        folder = self.folder / "kubeconfigs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{next(self._numbers)}.yaml"
        path.touch(mode=0o600)
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": CONTEXT,
                            "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)},
                        }
                    ],
                    "users": [{"name": CONTEXT, "user": {"token": token}}],
                    "contexts": [
                        {
                            "name": CONTEXT,
                            "context": {"cluster": CONTEXT, "user": CONTEXT, "namespace": namespace},
                        }
                    ],
                    "current-context": CONTEXT,
                }
            )
        )
        return path

    def namespace(
        self,
        prefix: str = "test",
        *,
        security: Literal["privileged", "baseline", "restricted"] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """A fresh namespace that takes pods; `security` enforces a Pod Security Standard."""
        name = f"{prefix}-{next(self._numbers)}"
        enforced = {"pod-security.kubernetes.io/enforce": security} if security else {}
        body = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {**enforced, **(labels or {})}},
        }
        self.api.request("POST", "/api/v1/namespaces", body)
        wait_for(lambda: self._takes_pods(name), f"the default service account of {name}")
        return name

    def service_account(
        self,
        namespace: str,
        name: str,
        rules: Sequence[Document] = (),
        *,
        cluster_rules: Sequence[Document] = (),
    ) -> str:
        """A service account with a Role of `rules` (and a ClusterRole of `cluster_rules`); its bound token, valid a day.

        Returns when RBAC knows the bindings.
        """
        subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        everywhere = f"{namespace}-{name}"
        documents: list[Document] = [document("v1", "ServiceAccount", name, namespace)]
        for role, role_name, inside, granted in (
            ("Role", name, namespace, rules),
            ("ClusterRole", everywhere, None, cluster_rules),
        ):
            if granted:
                documents += [
                    document("rbac.authorization.k8s.io/v1", role, role_name, inside, rules=list(granted)),
                    document(
                        "rbac.authorization.k8s.io/v1",
                        f"{role}Binding",
                        role_name,
                        inside,
                        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": role_name},
                        subjects=[subject],
                    ),
                ]
        self.apply(documents)
        answer = self.api.request(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": 86400},
            },
        )
        for granted, inside in ((rules, namespace), (cluster_rules, "")):
            if granted:
                wait_for(
                    lambda rule=granted[0], inside=inside: self._allowed(namespace, name, rule, inside),  # type: ignore[misc]
                    f"RBAC for {namespace}/{name}",
                )
        token: str = answer["status"]["token"]
        return token

    def _start_etcd(self, binary: Path, port: int, peer_port: int) -> None:
        url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        server = self.run(
            Server(
                "etcd",
                [
                    binary,
                    f"--data-dir={self.folder / 'etcd'}",
                    f"--listen-client-urls={url}",
                    f"--advertise-client-urls={url}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=default={peer}",
                    "--unsafe-no-fsync=true",
                    "--log-level=warn",
                ],
                self.folder / "logs",
            )
        )
        server.wait_until(lambda: _answers(f"{url}/health"))

    def _start_api_server(self, command: Sequence[str | Path], names: Sequence[str]) -> None:
        pki = self.folder / "pki"
        serving = self.authority.issue(
            "apiserver",
            "kube-apiserver",
            names=[
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "localhost",
                "127.0.0.1",
                FIRST_SERVICE,
                *names,
            ],
        )
        kubelet_client = self.authority.issue(
            "apiserver-kubelet-client", "kube-apiserver-kubelet-client", organizations=["system:masters"]
        )
        private, public = signing_keys(pki)
        tokens = pki / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{ADMIN_TOKEN},admin,1,"system:masters"\n')
        server = self.run(
            Server(
                "kube-apiserver",
                [
                    *command,
                    f"--cert-dir={pki}",
                    f"--tls-cert-file={serving.certificate}",
                    f"--tls-private-key-file={serving.key}",
                    f"--client-ca-file={self.ca_file}",
                    f"--kubelet-client-certificate={kubelet_client.certificate}",
                    f"--kubelet-client-key={kubelet_client.key}",
                    "--kubelet-preferred-address-types=InternalIP",
                    f"--service-cluster-ip-range={SERVICE_NETWORK}",
                    "--authorization-mode=RBAC,Node",
                    "--enable-admission-plugins=NodeRestriction",
                    "--allow-privileged=true",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={public}",
                    f"--service-account-signing-key-file={private}",
                    f"--token-auth-file={tokens}",
                ],
                self.folder / "logs",
            )
        )
        server.wait_until(self.api.ready)

    def _start_controllers(self, manager: Sequence[str | Path], scheduler: Sequence[str | Path]) -> None:
        common = [
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--secure-port=0",
            # The defaults (20, 50) make a test of a few hundred objects wait for the client's own limiter.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ]
        running = self.run(
            Server(
                "kube-controller-manager",
                [
                    *manager,
                    *common,
                    f"--service-account-private-key-file={self.folder / 'pki' / 'sa.key'}",
                    f"--root-ca-file={self.ca_file}",
                ],
                self.folder / "logs",
            )
        )
        self.run(Server("kube-scheduler", [*scheduler, *common], self.folder / "logs"))
        running.wait_until(lambda: self._takes_pods("default"))

    def _takes_pods(self, namespace: str) -> bool:
        """The controller-manager makes the default service account; before that, admission refuses pods."""
        return self.api.find("v1", "ServiceAccount", "default", namespace) is not None

    def _allowed(self, namespace: str, account: str, rule: Document, inside: str) -> bool:
        """Whether RBAC, which learns of bindings by a watch, grants the first thing of `rule` by now."""
        asked = (
            {
                "resourceAttributes": {
                    "namespace": inside,
                    "verb": rule["verbs"][0],
                    "group": rule["apiGroups"][0],
                    "resource": rule["resources"][0].split("/")[0],
                    "subresource": rule["resources"][0].partition("/")[2],
                    "name": rule.get("resourceNames", [""])[0],
                }
            }
            if "resources" in rule
            else {"nonResourceAttributes": {"path": rule["nonResourceURLs"][0], "verb": rule["verbs"][0]}}
        )
        answer = self.api.request(
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {"user": f"system:serviceaccount:{namespace}:{account}", **asked},
            },
        )
        return bool(answer["status"]["allowed"])


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
