"""The container runtime of the node: containerd with a root of its own, filled before it starts.

Importing an image of a gigabyte takes twenty seconds, most of them to unpack it. So it is done once: the root after the
import is kept in the user's cache, and a node gets a copy of hard links. Layers are only ever read; the databases are copied.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.bed import build
from cluster.bed.node import packages
from cluster.bed.node.images import PAUSE, Image
from cluster.bed.node.machine import Machine
from cluster.bed.processes import Server, StartFailed, wait_for

SOCKET = "/run/containerd/containerd.sock"

CONFIG = """\
version = 2
root = "{root}"
disabled_plugins = [{unused}]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # A machine without CAP_SYS_RESOURCE cannot lower the score; runc would die of trying.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{network}"
"""
UNUSED = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in ("btrfs", "zfs", "devmapper"))


class Containerd:
    """containerd in a `Machine`; it ends with the machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.folder = machine.folder / "containerd"

    def start(self, images: Sequence[Image]) -> None:
        """Start it with `images` in it.

        Raises: StartFailed, with the end of its log or the words of `ctr`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "cni").mkdir()
        (self.folder / "cni" / "10-pods.conflist").write_text(json.dumps(self._network(), indent=1))
        root = self.folder / "root"
        cached = build.cache_root() / "containerd"
        cached.mkdir(exist_ok=True)
        with (cached / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _copy(self._filled(cached, images), root)
        self._serve(root)

    def add(self, image: Image) -> None:
        """Import an image, under its name and under `repository@sha256:...`."""
        self._ctr("images", "import", str(image.archive))
        self._ctr("images", "tag", "--force", image.name, self.by_digest(image))

    def by_digest(self, image: Image) -> str:
        """`repository@sha256:...` of an image, as a plan names it. Raises: LookupError when it was not imported."""
        for line in self._ctr("images", "list", f"name=={image.name}").splitlines()[1:]:
            return f"{image.name.rpartition(':')[0]}@{line.split()[2]}"
        raise LookupError(f"{image.name} was not imported")

    def _filled(self, cached: Path, images: Sequence[Image]) -> Path:
        """A root in the cache with exactly these images, made from the one of an earlier checkout when there is one."""
        names = "\0".join(sorted(str(image.archive) for image in images))
        filled = cached / hashlib.sha256(names.encode()).hexdigest()[:12]
        if filled.exists():
            return filled
        build.say("unpacking images for the node ...")
        earlier = [each for each in cached.iterdir() if each.is_dir() and not each.name.startswith(".")]
        with tempfile.TemporaryDirectory(dir=cached, prefix=".half-") as scratch:
            half = Path(scratch) / "root"
            if earlier:
                _copy(earlier[0], half)
            server = self._serve(half)
            for image in images:
                self.add(image)
            wanted = {name for image in images for name in (image.name, self.by_digest(image))}
            if old := set(self._ctr("images", "list", "--quiet").split()) - wanted:
                self._ctr("images", "remove", "--sync", *old)
            self.machine.run("pkill", "--exact", "containerd")
            wait_for(lambda: not server.running, "the end of containerd")
            half.rename(filled)
        for each in earlier:
            shutil.rmtree(each)
        return filled

    def _serve(self, root: Path) -> Server:
        config = self.folder / "config.toml"
        config.write_text(
            CONFIG.format(
                root=root,
                unused=UNUSED,
                pause=PAUSE,
                plugins=packages.PLUGINS,
                network=self.folder / "cni",
            )
        )
        server = self.machine.serve("containerd", "containerd", "--config", config)
        server.wait_until(self._answers)
        return server

    def _network(self) -> dict[str, Any]:
        """Point-to-point links with routes, no bridge: so all traffic between pods passes the rules of Services."""
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": self.machine.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        return {
            "cniVersion": "0.4.0",
            "name": self.machine.name,
            "plugins": [
                {"type": "ptp", "ipMasq": False, "ipam": addresses},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }

    def _answers(self) -> bool:
        try:
            self._ctr("version")
        except StartFailed:
            return False
        return True

    def _ctr(self, *arguments: str) -> str:
        return self.machine.run("ctr", f"--address={SOCKET}", "--namespace=k8s.io", *arguments, timeout=600)


def _copy(root: Path, target: Path) -> None:
    """Copy a root that nobody uses: hard links, or copies across file systems; the databases are always copies."""
    linked = subprocess.run(["cp", "--archive", "--link", root, target], capture_output=True)
    if linked.returncode:
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "--archive", root, target], check=True)
        return
    for database in root.glob("*/*.db"):
        copy = target / database.relative_to(root)
        copy.unlink()
        shutil.copy2(database, copy)
