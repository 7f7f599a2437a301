"""Real controllers against the control plane, as processes: Argo Workflows and Kueue.

Both come with their CRDs (`crds`) and nothing else of their upstream installations: no Deployment, no Service, no image.
"""

from __future__ import annotations

import base64
import ssl

import httpx
import yaml

from cluster.bed import build, crds
from cluster.bed.api import Document, document
from cluster.bed.controlplane import ControlPlane
from cluster.bed.processes import Server, free_ports

ARGO_NAMESPACE = "argo"
ARGO_CONFIGURATION = "workflow-controller-configmap"
KUEUE_NAMESPACE = "kueue-system"
KUEUE_WEBHOOKS = "config/components/webhook/manifests.yaml"
KUEUE_FRAMEWORKS = ("batch/job", "pod")
SYSTEM_NAMESPACES = ("kube-system", KUEUE_NAMESPACE, ARGO_NAMESPACE)

EXECUTOR_ROLE = "argo-executor"
EXECUTOR_RULES: list[Document] = [
    {
        "apiGroups": ["argoproj.io"],
        "resources": ["workflowtaskresults"],
        "verbs": ["create", "patch"],
    }
]
"""What a Workflow's pods need (upstream: manifests/quick-start/base/executor)."""


def start_argo(plane: ControlPlane, *, executor_image: str = "localhost/argoexec:v3.7.3") -> Server:
    """Argo's workflow-controller for all namespaces; returns when it watches Workflows. It stops with `plane`.

    Its CRDs must be installed.
    """
    plane.apply(
        [
            document("v1", "Namespace", ARGO_NAMESPACE),
            document(
                "v1",
                "ConfigMap",
                ARGO_CONFIGURATION,
                ARGO_NAMESPACE,
                data={"metricsConfig": "enabled: false\n", "telemetryConfig": "enabled: false\n"},
            ),
        ]
    )
    server = plane.run(
        Server(
            "workflow-controller",
            [
                build.binary("workflow-controller"),
                f"--kubeconfig={plane.kubeconfig_for(plane.admin_token, ARGO_NAMESPACE)}",
                f"--configmap={ARGO_CONFIGURATION}",
                f"--executor-image={executor_image}",
                "--executor-image-pull-policy=Never",
                "--qps=200",
                "--burst=400",
            ],
            plane.folder / "logs",
            {
                "LEADER_ELECTION_DISABLE": "true",
                # It waits this long after a change before it looks at a Workflow again (10 s upstream), and at schedules.
                "DEFAULT_REQUEUE_TIME": "250ms",
                "CRON_SYNC_PERIOD": "1s",
            },
        )
    )
    server.wait_until(lambda: server.logged("Current Worker Numbers"))
    return server


def start_argo_server(plane: ControlPlane, *, address: str = "127.0.0.1") -> str:
    """The Argo Server, which takes the tokens of the API server; its URL, with a certificate of the plane's authority
    (`plane.authority.bundle`). It stops with `plane`, whose Argo controller must run."""
    (port,) = free_ports(1)
    pair = plane.authority.issue("argo-server", "argo-server", names=["localhost", "127.0.0.1", address])
    certificate = {"tls.crt": pair.certificate.read_text(), "tls.key": pair.key.read_text()}
    secret = document("v1", "Secret", "argo-server-tls", ARGO_NAMESPACE, stringData=certificate)
    plane.apply([secret])
    command = [
        build.binary("argo"),
        "server",
        "--auth-mode=client",
        f"--port={port}",
        "--tls-certificate-secret-name=argo-server-tls",
        f"--configmap={ARGO_CONFIGURATION}",
    ]
    # Not a flag: it also looks here for the API server to which it takes the tokens of its clients.
    environment = {"KUBECONFIG": str(plane.kubeconfig_for(plane.admin_token, ARGO_NAMESPACE))}
    server = plane.run(Server("argo-server", command, plane.folder / "logs", environment))
    url = f"https://{address}:{port}"
    trust = ssl.create_default_context(cadata=plane.authority.bundle)
    login = {"Authorization": f"Bearer {plane.admin_token}"}
    server.wait_until(lambda: _answers(f"{url}/api/v1/version", verify=trust, headers=login))
    return url


def start_kueue(plane: ControlPlane, *, configuration: Document | None = None) -> Server:
    """Kueue for Jobs and pods, with its webhooks; returns when they answer. It stops with `plane`.

    Args:
        configuration: fields of Kueue's Configuration (v1beta2), over the bed's own: `waitForPodsReady`, `fairSharing`.

    Its CRDs must be installed.
    """
    webhook, health = free_ports(2)
    folder = plane.folder / "kueue"
    (folder / "metrics-certs").mkdir(parents=True)
    pair = plane.authority.issue("kueue-webhook", "kueue-webhook", names=["localhost", "127.0.0.1"])
    for file, source in (("tls.crt", pair.certificate), ("tls.key", pair.key)):
        for inside in (folder, folder / "metrics-certs"):
            (inside / file).write_bytes(source.read_bytes())
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "config.kueue.x-k8s.io/v1beta2",
                "kind": "Configuration",
                "namespace": KUEUE_NAMESPACE,
                "leaderElection": {"leaderElect": False},
                "internalCertManagement": {"enable": False},
                "metrics": {"bindAddress": "0"},
                "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
                "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(folder)},
                "clientConnection": {"qps": 300, "burst": 500},
                "integrations": {"frameworks": list(KUEUE_FRAMEWORKS)},
                **(configuration or {}),
            }
        )
    )
    plane.apply([document("v1", "Namespace", KUEUE_NAMESPACE)])
    server = Server(
        "kueue",
        [
            build.binary("kueue"),
            f"--kubeconfig={plane.kubeconfig}",
            f"--config={config}",
            # Its server reads certificates at the root of the file system.
            "--feature-gates=VisibilityOnDemand=false",
        ],
        plane.folder / "logs",
        folder=folder,
    )
    plane.run(server)
    server.wait_until(lambda: _answers(f"http://127.0.0.1:{health}/readyz"))
    plane.apply(kueue_webhooks(f"https://127.0.0.1:{webhook}", plane.authority.bundle))
    return server


def kueue_webhooks(url: str, bundle: str) -> list[Document]:
    """Kueue's webhook configurations, called by URL in place of a Service.

    The module's file is what kustomize starts from. Its patches exclude the system's namespaces from the webhooks of
    workloads; so does this.
    """
    source = crds.SOURCES["kueue"]
    text = (build.module_folder(source.module, source.version) / KUEUE_WEBHOOKS).read_text()
    configurations: list[Document] = list(yaml.load_all(text, Loader=yaml.CSafeLoader))
    for configuration in configurations:
        configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {
                "url": f"{url}{path}",
                "caBundle": base64.b64encode(bundle.encode()).decode(),
            }
            if "kueue-x-k8s-io" not in path:
                webhook["namespaceSelector"] = {
                    "matchExpressions": [
                        {
                            "key": "kubernetes.io/metadata.name",
                            "operator": "NotIn",
                            "values": list(SYSTEM_NAMESPACES),
                        }
                    ]
                }
    return configurations


def _answers(url: str, *, verify: ssl.SSLContext | bool = True, headers: Document | None = None) -> bool:
    try:
        return httpx.get(url, verify=verify, headers=headers, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
