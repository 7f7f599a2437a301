"""A machine inside this machine: network, mounts and processes of its own, which end together.

A kubelet and a containerd scatter mounts, iptables rules, shims, network namespaces and sysctls over the machine they run
on, and clean up none of it when they are killed. So they run in namespaces of their own (as in kind, without Docker): all
processes die with the first one, and the kernel takes mounts, interfaces and rules with the last one. Only control groups
are left, and `stop` removes these.

    198.18.N.1    this machine: the API server, and whatever a test serves to pods
    198.18.N.2    the node: kubelet, kube-proxy, CoreDNS
    198.18.N.128/25 pods, reachable from this machine too
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import random
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.bed.node.packages import LOOK_IN
from cluster.bed.processes import Server, StartFailed, wait_for

BENCHMARK = "198.18"
"""198.18.0.0/15 belongs to benchmarks (RFC 2544): no network that a test machine is in."""

CGROUPS = Path("/sys/fs/cgroup")
CNI_STATE = Path("/var/lib/cni")
"""Compiled into containerd; the machine has its own there, this one lends an empty mount point."""
TOOLS = {"PATH": LOOK_IN}

KERNEL = {
    "vm/overcommit_memory": "1",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""Settings that every kubelet enforces (`protectKernelDefaults` only turns that into an error). They belong to the whole
kernel, so the kubelet is shown what it wants to see and the kernel keeps its own."""

SETUP = """
mount --make-rshared /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/lock
mount -t tmpfs tmpfs /var/lib/cni
names=$(readlink -m /etc/resolv.conf)
mkdir -p "$(dirname "$names")" && touch "$names"
mount --bind {folder}/resolv.conf "$names"
for setting in {settings}; do
    if test -e "/proc/sys/$setting"; then mount --bind "{folder}/sys/$setting" "/proc/sys/$setting"; fi
done
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link set lo up
touch {folder}/ready
exec env --ignore-signal=CHLD sleep infinity
"""
"""The first process. It ignores SIGCHLD, so the kernel buries the orphans of runc and nobody has to."""


class Machine:
    """A running machine. Make one with `start`; `stop` ends everything in it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.name = f"mlspec{number}"
        self.host_address = f"{BENCHMARK}.{number}.1"
        self.address = f"{BENCHMARK}.{number}.2"
        self.pods = f"{BENCHMARK}.{number}.128/25"
        self.cgroup = f"/{self.name}"
        self.servers: dict[str, Server] = {}
        self._made_cni = False
        script = SETUP.format(folder=folder, settings=" ".join(KERNEL))
        private = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = Server("machine", [*private, "sh", "-euc", script], folder / "logs", TOOLS)

    @property
    def pid(self) -> int:
        """The first process inside, as this machine numbers it."""
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        if not children:
            raise StartFailed(f"the machine ended:\n{self._init.tail()}")
        return int(children[0])

    @classmethod
    def start(cls, folder: Path) -> Machine:
        """Make it; well under a second.

        Args:
            folder: for its files and logs; it may be new. It is a folder of this machine, with the same path inside.

        Raises: StartFailed with the words of `mount` or `ip`.
        """
        machine = cls(folder.resolve(), _free_number())
        try:
            machine._start()
        except BaseException:
            machine.stop()
            raise
        return machine

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """`arguments` as a command that runs inside: same files, but the node's network, mounts and processes."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--root", "--wdns=/"]
        return [*enter, "env", f"PATH={LOOK_IN}", *map(str, arguments)]

    def run(self, *arguments: str | Path, timeout: float = 120.0) -> str:
        """Run a command inside to its end; its output. Service names and cluster addresses work in it.

        Raises: StartFailed with the command's error.
        """
        done = subprocess.run(self.command(arguments), capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise StartFailed(f"{' '.join(map(str, arguments))}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def serve(self, name: str, *arguments: str | Path) -> Server:
        """Start a long-running process inside; it ends with the machine."""
        server = Server(name, self.command(arguments), self.folder / "logs")
        self.servers[name] = server
        server.start()
        return server

    def stop(self) -> None:
        """End every process inside, and with them mounts, network and rules; then remove the control groups.

        A second call does nothing.
        """
        if self._init.running:
            with contextlib.suppress(StartFailed, ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
                # The first process is gone when all are gone: the kernel lets it wait for them.
                wait_for(lambda: not self._init.running, "the end of the machine")
        self._init.stop()
        for server in self.servers.values():
            server.stop()
        subprocess.run(["ip", "link", "delete", self.name], capture_output=True, env=TOOLS)
        for hierarchy in _hierarchies():
            wait_for(lambda root=hierarchy / self.name: _removed(root), f"the end of {hierarchy / self.name}")  # type: ignore[misc]
        if self._made_cni:
            CNI_STATE.rmdir()
            self._made_cni = False

    def _start(self) -> None:
        for setting, value in KERNEL.items():
            file = self.folder / "sys" / setting
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
        (self.folder / "resolv.conf").write_text(
            f"nameserver {self.address}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n"
        )
        self._made_cni = not CNI_STATE.exists()
        CNI_STATE.mkdir(exist_ok=True)
        self._init.start()
        self._init.wait_until((self.folder / "ready").exists)
        _ip("link", "add", self.name, "type", "veth", "peer", "name", "uplink", "netns", str(self.pid))
        _ip("addr", "add", f"{self.host_address}/30", "dev", self.name)
        _ip("link", "set", self.name, "up")
        self.run("ip", "addr", "add", f"{self.address}/30", "dev", "uplink")
        self.run("ip", "link", "set", "uplink", "up")
        self.run("ip", "route", "add", "default", "via", self.host_address)
        _ip("route", "add", self.pods, "via", self.address)
        for hierarchy in _hierarchies():
            _sweep(hierarchy)
            _make_cgroup(hierarchy, self.name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, env=TOOLS)
    if done.returncode:
        raise StartFailed(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _free_number() -> int:
    """A third octet that no address of this machine has: several beds may run at once."""
    interfaces = json.loads(_ip("-json", "address"))
    used = {ipaddress.ip_address(a["local"]) for each in interfaces for a in each.get("addr_info", [])}
    free = [n for n in range(1, 255) if ipaddress.ip_address(f"{BENCHMARK}.{n}.1") not in used]
    return random.choice(free)


def _hierarchies() -> list[Path]:
    """The roots of control groups: one in version 2, one per controller in version 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    roots = {each.resolve() for each in CGROUPS.iterdir() if (each / "cgroup.procs").exists()}
    return sorted(roots)


def _make_cgroup(hierarchy: Path, name: str) -> None:
    group = hierarchy / name
    group.mkdir(exist_ok=True)
    if (
        hierarchy / "cgroup.controllers"
    ).exists():  # version 2 gives children only what their parents hand down
        for parent in (hierarchy, group):
            controllers = (parent / "cgroup.controllers").read_text().split()
            (parent / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in controllers))


def _sweep(hierarchy: Path) -> None:
    """Remove the groups of machines whose test run was killed: their interface is gone."""
    for group in hierarchy.glob("mlspec[0-9]*"):
        if not Path("/sys/class/net", group.name).exists():
            _removed(group)


def _removed(group: Path) -> bool:
    """Remove a control group with all below it, deepest first; False while the kernel still holds one."""
    for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()
