"""Binaries of the test bed: built from the Go module proxy into the user's cache, once per pin.

The first station of the bed: `controlplane`, `kwok` and `controllers` ask here for a path and get an executable. The pins
are the go.mod folders beside this file (`go/<module>`), their versions and hashes are committed; a new pin is a new folder
of the cache, so that an old checkout keeps its binaries.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

GO_MODULES = Path(__file__).parent / "go"
MINIMUM_GO = (1, 26)
KUBERNETES = "v1.36.3"


class Unavailable(Exception):
    """This machine cannot have the bed: Go is missing. Tests turn it into a loud skip."""


class BuildFailed(Exception):
    """Go is here and a build failed: an error of the bed, never a skip."""


@dataclass(frozen=True)
class Module:
    """One go.mod folder: the upstream module whose version names the cache folder, and what its builds need."""

    folder: str
    upstream: str
    stamps: Mapping[str, str]
    """`-X` link flags: without them kube-apiserver reports v0.0.0-master and clients refuse its version."""
    missing_links: Mapping[str, str] = field(default_factory=dict)
    """Symlinks of the repository, which module zips drop: link -> target, both inside `upstream`."""
    missing_files: Mapping[str, str] = field(default_factory=dict)
    """What upstream's build makes by other tools, with what stands in for it."""
    edits: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Text to replace in files of `upstream`: what no flag of the program can change."""


@dataclass(frozen=True)
class Binary:
    """One executable: the package that is its `main`, and how long a cold build takes on two cores."""

    module: str
    package: str
    cold_seconds: int


MODULES = {
    module.folder: module
    for module in (
        Module(
            "kubernetes",
            "k8s.io/kubernetes",
            {
                f"k8s.io/component-base/version.{name}": value
                for name, value in (
                    ("gitVersion", KUBERNETES),
                    ("gitMajor", KUBERNETES.removeprefix("v").split(".")[0]),
                    ("gitMinor", KUBERNETES.split(".")[1]),
                )
            },
        ),
        Module("kwok", "sigs.k8s.io/kwok", {}),
        Module(
            "argo",
            "github.com/argoproj/argo-workflows/v3",
            {"github.com/argoproj/argo-workflows/v3.version": "v3.7.3"},
            missing_links={
                "workflow/executor/osspecific/signal_linux.go": (
                    "workflow/executor/osspecific/signal_darwin.go"
                )
            },
            # The server carries its web pages, which nobody looks at here.
            missing_files={"ui/dist/app/index.html": "<p>not built</p>\n"},
        ),
        Module(
            "kueue",
            "sigs.k8s.io/kueue",
            {"sigs.k8s.io/kueue/pkg/version.GitVersion": "v0.19.2"},
            # It ends without certificates at this path, which takes root to write: relative to its working folder then.
            edits={"cmd/kueue/main.go": ('"/etc/kueue/metrics/certs"', '"metrics-certs"')},
        ),
        Module("coredns", "github.com/coredns/coredns", {}),
    )
}

BINARIES = {
    "etcd": Binary("kubernetes", "go.etcd.io/etcd/server/v3", 14),
    "kube-apiserver": Binary("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", 342),
    "kube-controller-manager": Binary("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", 135),
    "kube-scheduler": Binary("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", 8),
    "kubectl": Binary("kubernetes", "k8s.io/kubernetes/cmd/kubectl", 34),
    "kwok": Binary("kwok", "sigs.k8s.io/kwok/cmd/kwok", 145),
    "workflow-controller": Binary(
        "argo", "github.com/argoproj/argo-workflows/v3/cmd/workflow-controller", 238
    ),
    "argoexec": Binary("argo", "github.com/argoproj/argo-workflows/v3/cmd/argoexec", 22),
    "argo": Binary("argo", "github.com/argoproj/argo-workflows/v3/cmd/argo", 60),
    "kueue": Binary("kueue", "sigs.k8s.io/kueue/cmd/kueue", 331),
    "kubelet": Binary("kubernetes", "k8s.io/kubernetes/cmd/kubelet", 35),
    "kube-proxy": Binary("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", 29),
    "coredns": Binary("coredns", "github.com/coredns/coredns", 284),
}
"""In the order of building: the API server first, because every test of the bed waits for it."""

GROUPS = {
    "controlplane": (
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubectl",
        "kwok",
    ),
    "controllers": ("workflow-controller", "argo", "kueue"),
    "node": ("argoexec", "kubelet", "kube-proxy", "coredns"),
}


def binary(name: str) -> Path:
    """The executable `name`; from `KUBEBUILDER_ASSETS`, else from the cache, else built now.

    Raises:
        Unavailable: it has to be built and Go (1.26 or newer) is not installed.
        BuildFailed: Go ran and failed; the message carries the end of its output.
    """
    if ready := _from_assets(name):
        return ready
    target = _cached(name)
    if target.exists():
        return target
    go = _go()
    with _lock(target):
        if not target.exists():
            _build(go, name, target)
    return target


def group(name: str) -> dict[str, Path]:
    """All executables of a group of `GROUPS`, by name."""
    return {each: binary(each) for each in GROUPS[name]}


def module_folder(module: str, version: str) -> Path:
    """The source folder of a Go module, downloaded when needed: where its CRDs and webhook manifests are.

    Raises: as `binary`.
    """
    done = subprocess.run(
        [_go(), "mod", "download", "-json", f"{module}@{version}"],
        env=_environment(),
        # Beside our go.sum where it has the hash: the checksum server knows less than the proxy.
        cwd=next(
            (GO_MODULES / each.folder for each in MODULES.values() if each.upstream == module), cache_root()
        ),
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout or "{}")
    if done.returncode or "Dir" not in answer:
        raise BuildFailed(f"go mod download {module}@{version}: {answer.get('Error') or done.stderr}")
    return Path(answer["Dir"])


def cache_root() -> Path:
    """The bed's folder in the user's cache, made when it is missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(base) / "mlspec" / "bed"
    root.mkdir(parents=True, exist_ok=True)
    return root


def say(text: str) -> None:
    """A line of progress, on stderr: builds take minutes and a silent minute looks like a hang."""
    print(f"bed: {text}", file=sys.stderr, flush=True)


def _from_assets(name: str) -> Path | None:
    """The binary of `KUBEBUILDER_ASSETS`, the variable that envtest made the convention."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    path = Path(folder) / name if folder else None
    return path if path and os.access(path, os.X_OK) else None


def _cached(name: str) -> Path:
    return cache_root() / _folder(MODULES[BINARIES[name].module]) / "bin" / name


def _folder(module: Module) -> str:
    """The name in the cache: the pin, and a hash of all that decides what is built."""
    digest = hashlib.sha256()
    for file in ("go.mod", "go.sum"):
        digest.update((GO_MODULES / module.folder / file).read_bytes())
    repairs = [*module.missing_links.items(), *module.missing_files.items(), *module.edits.items()]
    digest.update(" ".join([*_flags(module), *map(str, repairs)]).encode())
    return f"{module.folder}-{_version(module)}-{digest.hexdigest()[:10]}"


def _version(module: Module) -> str:
    text = (GO_MODULES / module.folder / "go.mod").read_text()
    found = re.search(rf"^\s*{re.escape(module.upstream)} (v\S+)", text, re.MULTILINE)
    if not found:
        raise BuildFailed(f"{module.folder}/go.mod does not require {module.upstream}")
    return found[1]


def _flags(module: Module) -> list[str]:
    link = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in sorted(module.stamps.items()))])
    return ["-trimpath", "-buildvcs=false", "-ldflags", link]


def _build(go: str, name: str, target: Path) -> None:
    """Build beside the target and rename: whoever finds the path finds a whole file."""
    wanted = BINARIES[name]
    module = MODULES[wanted.module]
    say(
        f"building {name} ({module.upstream} {_version(module)}), "
        f"up to {max(1, round(wanted.cold_seconds / 60))} min with a cold Go cache on 2 cores ..."
    )
    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix=f".{name}-") as scratch:
        output = Path(scratch) / name
        modfile = _repaired(module, Path(scratch))
        done = subprocess.run(
            [go, "build", *_flags(module), *modfile, "-o", output, wanted.package],
            cwd=GO_MODULES / module.folder,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise BuildFailed(f"go build {wanted.package} failed:\n{done.stdout[-3000:]}")
        output.replace(target)
    say(f"built {name} in {time.monotonic() - started:.0f} s")


def _repaired(module: Module, scratch: Path) -> list[str]:
    """Flags that build `module` from a repaired copy; none when it needs no repair.

    Module zips hold no symlinks, and `go build -overlay` refuses files under the module cache. So the upstream module is
    copied and a go.mod of the scratch folder points at the copy. The copy stands at one path: Go's build cache then serves
    the second binary.
    """
    if not module.missing_links and not module.missing_files and not module.edits:
        return []
    source = cache_root() / "src" / _folder(module)
    if not source.exists():
        original = module_folder(module.upstream, _version(module))
        half = scratch / "src"
        shutil.copytree(original, half, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("docs"))
        for folder in (half, *(path for path in half.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        for link, points_at in module.missing_links.items():
            shutil.copyfile(half / points_at, half / link)
        for file, text in module.missing_files.items():
            (half / file).parent.mkdir(parents=True)
            (half / file).write_text(text)
        for file, (old, new) in module.edits.items():
            text = (half / file).read_text()
            if old not in text:
                raise BuildFailed(f"{module.upstream}: {file} does not contain {old}")
            (half / file).write_text(text.replace(old, new))
        source.parent.mkdir(exist_ok=True)
        half.rename(source)
    ours = GO_MODULES / module.folder
    modfile = scratch / "go.mod"
    modfile.write_text((ours / "go.mod").read_text() + f"\nreplace {module.upstream} => {source}\n")
    shutil.copyfile(ours / "go.sum", scratch / "go.sum")
    return [f"-modfile={modfile}"]


def _environment() -> dict[str, str]:
    """Reproducible builds: this Go and no other, no C compiler, no flags of the user."""
    return {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}


@cache
def _go() -> str:
    way_out = (
        "install Go 1.26 or newer (https://go.dev/dl/), or set KUBEBUILDER_ASSETS to a folder with "
        "kube-apiserver, etcd, kubectl, kube-controller-manager, kube-scheduler and kwok"
    )
    go = shutil.which("go")
    if not go:
        raise Unavailable(f"the real control plane needs Go: {way_out}")
    answer = subprocess.run([go, "env", "GOVERSION"], env=_environment(), capture_output=True, text=True)
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    if not found or (int(found[1]), int(found[2])) < MINIMUM_GO:
        raise Unavailable(f"{go} is {answer.stdout.strip() or 'broken'}, too old: {way_out}")
    return go


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """One builder per module; the others wait and then find what they want, or the Go cache warm."""
    locks = cache_root() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / target.parents[1].name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {target.name}, which another process is building ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
