"""What the node takes from Debian: checked, and installed when something is missing. `node` calls it first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.bed import build

PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "pkill": "procps",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "env": "coreutils",
    "mount": "mount",
}
"""Program -> Debian package."""

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's `containernetworking-plugins` puts them."""

LOOK_IN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def require() -> None:
    """Make sure that everything is there.

    Raises:
        build.Unavailable: this machine cannot run a node; the message says what is missing.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise build.Unavailable(
            "a real node needs root on Linux: run `make e2e` as root, or in a virtual machine"
        )
    _namespaces()
    if missing := _missing():
        _install(sorted(missing))
        if still := _missing():
            raise build.Unavailable(
                f"a real node needs {', '.join(sorted(still))}, and apt-get did not bring it"
            )


def _missing() -> set[str]:
    packages = {package for program, package in PROGRAMS.items() if not shutil.which(program, path=LOOK_IN)}
    if not all((PLUGINS / plugin).exists() for plugin in ("ptp", "host-local", "portmap", "loopback")):
        packages.add("containernetworking-plugins")
    return packages


def _install(packages: list[str]) -> None:
    apt = shutil.which("apt-get", path=LOOK_IN)
    if not apt:
        raise build.Unavailable(
            f"a real node needs {', '.join(packages)}, and this machine has no apt-get to install them"
        )
    build.say(f"installing {' '.join(packages)} with apt-get ...")
    # RUNLEVEL=1: no package starts its service; the bed runs a containerd of its own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = [apt, "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    done = subprocess.run(install, env=environment, capture_output=True, text=True)
    if done.returncode:  # a fresh machine has no package lists, an old one has stale ones
        subprocess.run([apt, "update", "--quiet"], env=environment, capture_output=True)
        done = subprocess.run(install, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise build.Unavailable(
            f"apt-get could not install {' '.join(packages)}: {done.stderr.strip()[-500:]}"
        )


def _namespaces() -> None:
    """The kernel and our capabilities decide whether a machine can be made inside this one; a container often cannot."""
    tried = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "mount",
            "-t",
            "tmpfs",
            "tmpfs",
            "/run",
        ],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        raise build.Unavailable(f"a real node needs namespaces and mounts: {tried.stderr.strip()}")
