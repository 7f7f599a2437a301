"""One real node: containerd, kubelet, kube-proxy and CoreDNS in a machine of their own, against a `ControlPlane`.

The top of layer 3. Tests take `start`, which starts the control plane too; everything that pods need is there when it
returns: images, cluster DNS, Services. Nothing is pulled, so pods say `imagePullPolicy: Never` or `IfNotPresent`.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.bed import build
from cluster.bed.api import document
from cluster.bed.certificates import Pair
from cluster.bed.controlplane import ControlPlane
from cluster.bed.node import images, packages
from cluster.bed.node.containerd import SOCKET, Containerd
from cluster.bed.node.machine import Machine
from cluster.bed.processes import wait_for

BINARIES = ("kubelet", "kube-proxy", "coredns")
NAME = "real"
"""Of the Node; its label `mlspec.dev/bed=real` tells it from simulated ones."""
DOMAIN = "cluster.local"
USER = 10001
"""Of the runtime image; it owns the volumes."""


class Node:
    """A running node. Make one with its control plane by `start`, or with `Node.start`."""

    def __init__(self, plane: ControlPlane, machine: Machine) -> None:
        self.plane = plane
        self.machine = machine
        self.containerd = Containerd(machine)
        self.runtime: images.Image
        """The runtime image of this checkout; `runtime.name` is what a pod says."""

    @classmethod
    def start(cls, plane: ControlPlane, machine: Machine, *, extra_requirements: Sequence[str] = ()) -> Node:
        """Start all four and wait until the node is ready for pods; about 5 s.

        Args:
            plane: a control plane that listens beyond loopback: `bind_address="0.0.0.0"` and
                `advertise_address=machine.host_address`.
            machine: where they run.
            extra_requirements: libraries that the runtime image gets beside its own.

        Raises:
            build.Unavailable, build.BuildFailed: as `build.binary` and `images.runtime`.
            StartFailed: a process ended or did not become ready; its log is in the message.
        """
        node = cls(plane, machine)
        binaries = {name: build.binary(name) for name in BINARIES}
        wanted = [images.pause(), images.argoexec(), images.runtime(extra_requirements)]
        node.runtime = wanted[-1]
        node.containerd.start(wanted)
        node._start_dns(binaries["coredns"])
        node._start_proxy(binaries["kube-proxy"])
        node._start_kubelet(binaries["kubelet"])
        return node

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the node, then its control plane. A second call does nothing."""
        self.machine.stop()
        self.plane.stop()
        # pytest keeps the folders of three runs, and this one has 1.5 GB.
        shutil.rmtree(self.machine.folder / "containerd", ignore_errors=True)

    @property
    def runtime_by_digest(self) -> str:
        """The runtime image as a plan names it: `repository@sha256:...`."""
        return self.containerd.by_digest(self.runtime)

    def claim(self, namespace: str, name: str, *, size: str = "10Gi") -> str:
        """A PersistentVolume on this machine's disk and a bound claim (ReadWriteMany) for it; the claim's name.

        Its folder is `volume(namespace, name)`; uid 10001 may write to it.
        """
        folder = self.volume(namespace, name)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o2775)
        os.chown(folder, USER, USER)
        volume = f"{namespace}-{name}"
        common: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        self.plane.apply(
            [
                document(
                    "v1",
                    "PersistentVolume",
                    volume,
                    spec={
                        **common,
                        "capacity": {"storage": size},
                        "persistentVolumeReclaimPolicy": "Retain",
                        "hostPath": {"path": str(folder), "type": "Directory"},
                        "claimRef": {"namespace": namespace, "name": name},
                    },
                ),
                document(
                    "v1",
                    "PersistentVolumeClaim",
                    name,
                    namespace,
                    spec={**common, "volumeName": volume, "resources": {"requests": {"storage": size}}},
                ),
            ]
        )
        wait_for(
            lambda: (
                self.plane.api.get("v1", "PersistentVolumeClaim", name, namespace)
                .get("status", {})
                .get("phase")
                == "Bound"
            ),
            f"the claim {namespace}/{name}",
        )
        return name

    def volume(self, namespace: str, name: str) -> Path:
        """The folder behind a claim, to look into from a test."""
        return self.machine.folder / "volumes" / namespace / name

    def _start_dns(self, binary: Path) -> None:
        token = self.plane.service_account(
            "kube-system",
            "coredns",
            cluster_rules=[
                {
                    "apiGroups": [""],
                    "resources": ["services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                },
            ],
        )
        config = self._folder("coredns") / "Corefile"
        config.write_text(
            COREDNS.format(
                address=self.machine.address,
                domain=DOMAIN,
                kubeconfig=self._kubeconfig("coredns", {"token": token}),
            )
        )
        self.machine.serve("coredns", binary, "-conf", config)

    def _start_proxy(self, binary: Path) -> None:
        user = self.plane.authority.issue("kube-proxy", "system:kube-proxy")
        config = self._folder("kube-proxy") / "config.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                    "kind": "KubeProxyConfiguration",
                    "clientConnection": {
                        "kubeconfig": str(self._kubeconfig("kube-proxy", _certificate(user)))
                    },
                    "mode": "iptables",
                    "clusterCIDR": self.machine.pods,
                    "hostnameOverride": NAME,
                    # Settings of the whole kernel, which are not the node's to change.
                    "conntrack": {
                        "maxPerCore": 0,
                        "min": 0,
                        "tcpEstablishedTimeout": "0s",
                        "tcpCloseWaitTimeout": "0s",
                    },
                    "iptables": {"localhostNodePorts": False, "minSyncPeriod": "0s"},
                }
            )
        )
        self.machine.serve("kube-proxy", binary, f"--config={config}")

    def _start_kubelet(self, binary: Path) -> None:
        folder = self._folder("kubelet")
        user = self.plane.authority.issue("kubelet", f"system:node:{NAME}", organizations=["system:nodes"])
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(self._kubelet(folder)))
        server = self.machine.serve(
            "kubelet",
            binary,
            f"--config={config}",
            f"--kubeconfig={self._kubeconfig('kubelet', _certificate(user))}",
            f"--root-dir={folder / 'root'}",
            f"--cert-dir={folder / 'pki'}",
            f"--hostname-override={NAME}",
            f"--node-ip={self.machine.address}",
            "--node-labels=mlspec.dev/bed=real",
        )
        server.wait_until(self._ready, timeout=120)

    def _kubelet(self, folder: Path) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "address": self.machine.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(self.plane.ca_file)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "clusterDomain": DOMAIN,
            "clusterDNS": [self.machine.address],
            "resolvConf": str(self.machine.folder / "resolv.conf"),
            "podLogsDir": str(folder / "logs"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.machine.cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "protectKernelDefaults": True,
            "enforceNodeAllocatable": [],
            "makeIPTablesUtilChains": False,
            "localStorageCapacityIsolation": False,
            # The disk is the machine's, and no image can be pulled again.
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "shutdownGracePeriod": "0s",
            "maxPods": ipaddress.ip_network(self.machine.pods).num_addresses - 8,
        }

    def _ready(self) -> bool:
        node = self.plane.api.find("v1", "Node", NAME)
        if not node or node["spec"].get("taints"):
            return False
        conditions = node.get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _kubeconfig(self, name: str, user: dict[str, str]) -> Path:
        """For a process of the node: the API server by its address instead of loopback."""
        port = self.plane.url.rpartition(":")[2]
        server = f"https://{self.machine.host_address}:{port}"
        path = self._folder(name) / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "bed",
                            "cluster": {"server": server, "certificate-authority": str(self.plane.ca_file)},
                        }
                    ],
                    "users": [{"name": name, "user": user}],
                    "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": name}}],
                    "current-context": "bed",
                }
            )
        )
        return path

    def _folder(self, name: str) -> Path:
        folder = self.machine.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def start(folder: Path, *, extra_requirements: Sequence[str] = ()) -> Node:
    """A control plane and its real node; `Node.stop`, or the end of a `with`, ends both with everything that runs there.

    Raises: as `packages.require` and `Node.start`.
    """
    packages.require()
    machine = Machine.start(folder / "node")
    try:
        plane = ControlPlane.start(
            folder / "plane", bind_address="0.0.0.0", advertise_address=machine.host_address
        )
        try:
            return Node.start(plane, machine, extra_requirements=extra_requirements)
        except BaseException:
            plane.stop()
            raise
    except BaseException:
        machine.stop()
        raise


COREDNS = """\
. {{
    bind {address}
    errors
    kubernetes {domain} in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl 5
    }}
}}
"""


def _certificate(pair: Pair) -> dict[str, str]:
    return {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
