"""Code bundles: what a function takes along, and what is said when it cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlspec.diagnostics import Diagnostic
from mlspec_reconciler import bundle, load
from mlspec_reconciler.cluster import Unavailable
from mlspec_reconciler.upload import upload
from mlspec_runtime.storage import Mirror
from s3 import S3, SECRET

SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Function
metadata: {name: fit}
spec: {code: "ENTRY", include: [INCLUDE]}
"""
FILES = {
    "train.py": "import helper\nfrom pkg.model import net\n\n\ndef train():\n    import lazy\n",
    "helper.py": "import numpy\n",
    "lazy.py": "",
    "pkg/__init__.py": "",
    "pkg/model.py": "from . import blocks\nfrom .deep.layers import layer\n\nnet = 1\n",
    "pkg/blocks.py": "",
    "pkg/deep/__init__.py": "",
    "pkg/deep/layers.py": "from ..shared import x\n\nlayer = 1\n",
    "pkg/shared.py": "x = 1\n",
    "pkg/unused.py": "",
    "notebook.py": "print(1)\n",
    "conf/a.toml": "a = 1\n",
    "conf/b.toml": "b = 1\n",
    ".venv/conf/c.toml": "",
}
TAKEN = {
    "train.py", "helper.py", "lazy.py", "pkg/__init__.py", "pkg/model.py", "pkg/blocks.py", "pkg/deep/__init__.py",
    "pkg/deep/layers.py", "pkg/shared.py",
}  # fmt: skip


def gathered(
    root: Path, entry: str = "train.py:train", include: str = ""
) -> tuple[bundle.Bundle, list[Diagnostic]]:
    """The bundle of the one function."""
    spec = SPEC.replace("ENTRY", entry).replace("INCLUDE", include)
    (root / "ml").mkdir(exist_ok=True)
    (root / "ml" / "specs.yaml").write_text(spec)
    loaded = load.load([root], root=root)
    assert loaded.project is not None, loaded.diagnostics
    bundles, problems = bundle.gather(loaded.project, root)
    return next(iter(bundles.values())), problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the specs and the code in `ml/`."""
    for name, content in FILES.items():
        path = tmp_path / "ml" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_imports_are_followed_through_packages(root: Path) -> None:
    """A module that is left behind fails hours later, in a pod."""
    found, problems = gathered(root)
    assert set(found.files) == TAKEN
    assert not problems


def test_a_module_entry_is_the_same_code(root: Path) -> None:
    """`pkg.model:net` names a file of the repository as well."""
    found, problems = gathered(root, "pkg.model:net")
    assert "pkg/shared.py" in found.files
    assert not problems


def test_included_files_go_along(root: Path) -> None:
    """Patterns add data files, and never environments or version control."""
    found, _ = gathered(root, include='"conf/*.toml", "**/*.toml"')
    assert set(found.files) == TAKEN | {"conf/a.toml", "conf/b.toml"}


@pytest.mark.parametrize("name", ["notebook.py", "pkg/unused.py", "conf/a.toml", "other/new.py"])
def test_an_unrelated_file_changes_no_digest(root: Path, name: str) -> None:
    """Otherwise every edit would train everything again."""
    before, _ = gathered(root)
    path = root / "ml" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("changed = 1\n")
    assert gathered(root)[0].digest == before.digest


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_a_file_that_is_used_changes_the_digest(root: Path, name: str) -> None:
    """Otherwise a result would be taken for that of other code."""
    before, _ = gathered(root)
    path = root / "ml" / name
    path.write_text(path.read_text() + "# changed\n")
    assert gathered(root)[0].digest != before.digest


def test_a_syntax_error_is_shown_where_it_stands(root: Path) -> None:
    """At the line of the Python file, not of the spec."""
    (root / "ml" / "helper.py").write_text("import numpy\n\ndef broken(:\n")
    _, problems = gathered(root)
    assert [(one.code, str(one.mark.path), one.mark.line) for one in problems] == [
        ("python-syntax", "ml/helper.py", 3)
    ]


@pytest.mark.parametrize(
    ("entry", "include", "code", "words"),
    [
        ("trian.py:train", "", "missing-code", 'did you mean "train.py"'),
        ("train.py:trian", "", "missing-code", 'did you mean "train"'),
        ("train.py:train", '"*.csv"', "missing-code", "matches no file"),
        ("../train.py:train", "", "outside-code", "outside of ml/"),
        ("train.py:train", '"../*.yaml"', "outside-code", "outside of ml/"),
        ("train.py:train", '"/etc/*.conf"', "outside-code", "outside of ml/"),
    ],
)
def test_what_cannot_be_taken_is_said(root: Path, entry: str, include: str, code: str, words: str) -> None:
    """Each with a way out, and never a traceback."""
    _, problems = gathered(root, entry, include)
    assert [one.code for one in problems] == [code]
    assert words in problems[0].message


def test_functions_below_if_and_try_count(root: Path) -> None:
    """Code that adapts to its environment is code."""
    text = "try:\n    import a\nexcept ImportError:\n    def train():\n        pass\nif True:\n    other: int = 1\n"
    (root / "ml" / "train.py").write_text(text)
    assert not gathered(root)[1]
    assert not gathered(root, "train.py:other")[1]


@pytest.mark.parametrize(
    ("program", "module"),
    [
        (
            "import importlib\ndef train():\n    return importlib.import_module('dynamic').rows()\n",
            "dynamic.py",
        ),
        ("from importlib import import_module as load\nload('pkg.blocks')\ntrain = 1\n", "pkg/blocks.py"),
        ("import importlib as i\ntrain = i.import_module(name='dynamic')\n", "dynamic.py"),
        ("train = __import__('pkg.deep.layers')\n", "pkg/deep/layers.py"),
        ("import builtins\ntrain = builtins.__import__('dynamic')\n", "dynamic.py"),
        (
            "import importlib\ntrain = importlib.import_module('.shared', package='pkg.deep')\n",
            "pkg/deep/__init__.py",
        ),
        ("import importlib\ntrain = importlib.import_module('..shared', 'pkg.deep')\n", "pkg/shared.py"),
        ("import importlib\ntrain = [importlib.import_module(f'pkg.{n}') for n in ('blocks',)]\n", None),
        ("import importlib\ntrain = importlib.import_module('not a module')\n", None),
        ("def import_module(name):\n    return name\ntrain = import_module('dynamic')\n", "dynamic.py"),
    ],
)
def test_dynamic_imports_of_a_name_that_stands_there_are_followed(
    root: Path, program: str, module: str | None
) -> None:
    """The module would be missing in the run. What only running the code would tell is left to `include`."""
    (root / "ml" / "train.py").write_text(program)
    (root / "ml" / "dynamic.py").write_text("")
    found, problems = gathered(root)
    assert not problems
    assert (module in found.files) if module else (set(found.files) == {"train.py"})
    if module:
        (root / "ml" / module).write_text("changed = 1\n")
        assert gathered(root)[0].digest != found.digest


def test_a_relative_dynamic_import_of_a_module_of_its_package(root: Path) -> None:
    """`__package__` is known from where the file lies."""
    text = "from importlib import import_module\nblocks = import_module('.unused', __package__)\nnet = 1\n"
    (root / "ml/pkg/model.py").write_text(text)
    assert "pkg/unused.py" in gathered(root)[0].files


@pytest.mark.parametrize(
    ("name", "line", "column"),
    [
        ("types.py", "from types import rows as r", 6),
        ("queue.py", "import helper, queue", 16),
        ("email/__init__.py", "import email.rows", 8),
        ("json/rows.py", "from json.rows import x", 6),
        ("statistics.py", "import importlib; importlib.import_module('statistics')", 43),
    ],
)
def test_a_module_with_the_name_of_pythons_own_is_refused(
    root: Path, name: str, line: str, column: int
) -> None:
    """Which one is imported depends on what was imported before; the error would not say so, hours later."""
    path = root / "ml" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    (root / "ml" / "train.py").write_text(f"{line}\ntrain = 1\n")
    _, problems = gathered(root)
    assert [(one.severity, one.code, str(one.mark)) for one in problems] == [
        ("error", "shadowed-module", f"ml/train.py:1:{column}")
    ]
    assert problems[0].message.startswith(
        f"ml/{name} has the name of Python's own module {Path(name).parts[0].removesuffix('.py')}"
    )


def test_a_function_in_a_file_with_such_a_name_is_warned_of(root: Path) -> None:
    """The function itself is loaded by its path, but libraries would get the file in the place of Python's module."""
    (root / "ml" / "profile.py").write_text("def train():\n    pass\n")
    _, problems = gathered(root, "profile.py:train")
    assert [(one.severity, one.code) for one in problems] == [("warning", "shadowed-module")]


@pytest.mark.parametrize("name", ["pkg/types.py", "pkg/deep/queue.py", "conf/random.toml"])
def test_such_a_name_inside_of_a_package_is_nobodys_business(root: Path, name: str) -> None:
    """`pkg.types` has a name of its own."""
    (root / "ml" / name).write_text("")
    (root / "ml" / "train.py").write_text(
        "import types\nfrom pkg import types\nfrom pkg.deep import queue\ntrain = 1\n"
    )
    assert not gathered(root)[1]


# --- the same commit on another machine


TEXTS = {
    "train.py": 'import helper\n\nTEXT = """a\nb"""\n\n\ndef train():\n    return helper.x\n',
    "helper.py": "# Zürich\nx = 1\n",
    "latin.py": "# -*- coding: latin-1 -*-\nname = 'Zürich'\n",
    "conf/words.txt": "Zürich\nGenève\n",
    "conf/a.toml": "a = 1\n\n",
}
BOM = b"\xef\xbb\xbf"


def checked_out(root: Path, change: Callable[[str, bytes], bytes]) -> bundle.Bundle:
    """The bundle of the same files, as a checkout or an editor left their bytes."""
    for name, text in TEXTS.items():
        content = text.encode("latin-1" if name == "latin.py" else "utf-8")
        (root / "ml" / name).write_bytes(change(name, content))
    found, problems = gathered(root, include='"latin.py", "conf/*"')
    assert not problems
    return found


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda name, content: content.replace(b"\n", b"\r\n"), id="all CRLF"),
        pytest.param(lambda name, content: content.replace(b"\n", b"\r\n", 1), id="one line CRLF"),
        pytest.param(
            lambda name, content: content if name == "latin.py" else BOM + content, id="byte order marks"
        ),
        pytest.param(
            lambda name, content: content.replace(b"\n", b"\r\n") if name == "latin.py" else content,
            id="CRLF in Latin-1",
        ),
        pytest.param(
            lambda name, content: BOM + content.replace(b"\n", b"\r\n") if name == "helper.py" else content,
            id="a helper from Notepad",
        ),
    ],
)
def test_line_endings_and_byte_order_marks_are_no_change(
    root: Path, change: Callable[[str, bytes], bytes]
) -> None:
    """A checkout on Windows would otherwise train everything again; on Kubernetes the very bytes name the ConfigMaps."""
    plain = checked_out(root, lambda name, content: content)
    changed = checked_out(root, change)
    assert changed == plain
    assert checked_out(root, lambda name, content: content.replace(b"1", b"2")).digest != plain.digest


@pytest.mark.parametrize(
    "content",
    [
        b"\x0a\x0d\x0a\x0bhello world\x12\x02ok\r\n",  # a protobuf message, all of it UTF-8
        b"\x89PNG\r\n\x1a\n",
        b"a\r\n\x00b",
        b"Z\xfcrich\r\n",
        "a\r\n".encode("utf-16"),
    ],
    ids=["protobuf", "png", "nul", "latin-1", "utf-16"],
)
def test_what_is_no_text_keeps_its_bytes(root: Path, content: bytes) -> None:
    """A binary model with its line feeds rewritten would be another model, or none."""
    (root / "ml/conf/model.bin").write_bytes(content)
    found, _ = gathered(root, include='"conf/model.bin"')
    assert found.files["conf/model.bin"] == content
    (root / "ml/conf/model.bin").write_bytes(content.replace(b"\r\n", b"\n") + b" ")
    assert gathered(root, include='"conf/model.bin"')[0].digest != found.digest


@pytest.mark.parametrize(
    ("content", "code", "place", "words"),
    [
        (b"x = 1\nname = 'Z\xfcrich'\n", "encoding", "2:10", "byte 0xFC is not UTF-8 text"),
        (b"name = 'Z\xfcrich'\n", "encoding", "1:10", "byte 0xFC is not UTF-8 text"),
        (b"# 1\n# 2\n# 3\n# \xc3\xa4 \xe4\n", "encoding", "4:5", "byte 0xE4 is not UTF-8 text"),
        ("x = 1\n".encode("utf-16"), "encoding", "1:1", "UTF-16 text, which Python does not read"),
        (b"# coding: klingon\nx = 1\n", "encoding", "1:1", "unknown encoding: klingon"),
        (BOM + b"# coding: latin-1\nx = 1\n", "encoding", "1:1", "Python cannot read this"),
        (b"# coding: ascii\nx = 'Z\xc3\xbcrich'\n", "encoding", "2:7", "byte 0xC3 is not ascii text"),
        (b"x = 1\x00\n", "python-syntax", "1:1", "null bytes"),
        (b"x = " + b"-" * 100_000 + b"1\n", "python-syntax", "1:1", "too deeply"),
    ],
    ids=["latin-1", "first line", "comment", "utf-16", "unknown", "mark and cookie", "ascii", "nul", "deep"],
)
def test_a_file_that_python_cannot_read_is_one_diagnostic(
    root: Path, content: bytes, code: str, place: str, words: str
) -> None:
    """At its place in the Python file, once for all functions that see it, and not a crash."""
    (root / "ml" / "helper.py").write_bytes(content)
    (root / "ml" / "more.yaml").write_text(
        SPEC.replace("ENTRY", "helper.py:x").replace("INCLUDE", "").replace("name: fit", "name: other")
    )
    _, problems = gathered(root)
    assert [(one.code, str(one.mark)) for one in problems] == [(code, f"ml/helper.py:{place}")]
    assert words in problems[0].message


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8", "iso8859-15", "euc-jp"])
def test_the_encoding_that_a_file_names_is_honoured(root: Path, encoding: str) -> None:
    """PEP 263: what Python runs is never refused, and columns count characters."""
    text = f"# -*- coding: {encoding} -*-\nname = 'Straße'; import types, queue\nx = 1\n".replace(
        "ß", "ß" if encoding != "euc-jp" else "本"
    )
    (root / "ml" / "helper.py").write_bytes(text.encode(encoding))
    assert not gathered(root)[1]
    (root / "ml" / "queue.py").write_text("")
    assert [str(one.mark) for one in gathered(root)[1]] == ["ml/helper.py:2:32"]


def test_a_stored_bundle_has_all_files(root: Path, tmp_path: Path) -> None:
    """What runs is what was hashed; storing twice is storing once."""
    found, _ = gathered(root)
    for _ in range(2):
        bundle.store(found, tmp_path / "store")
    folder = tmp_path / "store" / "code" / found.digest[:16]
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.py")} == TAKEN
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


# --- into a bucket


@pytest.fixture
def folders() -> dict[str, dict[str, bytes]]:
    return {"code/0123456789abcdef": {"train.py": b"a = 1\n", "own/weights.bin": b"\xff" * 2_000_000}}


def test_code_is_uploaded_once(s3_server: S3, bucket: str, folders: dict[str, dict[str, bytes]]) -> None:
    """What is there has the same content; a half that a killed apply left is completed."""
    s3_server.write(bucket, "team/code/0123456789abcdef/train.py", b"a = 1\n")
    for writes in (1, 0):
        before = len(s3_server.requests)
        upload(f"s3://{bucket}/team", folders)
        assert sum(method == "PUT" for method, _ in s3_server.requests[before:]) == writes
    assert s3_server.objects(bucket) == {
        f"team/code/0123456789abcdef/{name}": content
        for name, content in folders["code/0123456789abcdef"].items()
    }


def test_a_pod_pulls_what_was_uploaded(
    s3_server: S3, bucket: str, folders: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """Reconciler and runtime do not know each other, but one layout."""
    upload(f"s3://{bucket}/team", folders)
    Mirror(f"s3://{bucket}/team", tmp_path).pull("code/0123456789abcdef")
    found = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert found == {
        f"code/0123456789abcdef/{name}": data for name, data in folders["code/0123456789abcdef"].items()
    }


def test_a_bucket_that_cannot_be_written_stops_the_apply(
    s3_server: S3, bucket: str, folders: dict[str, dict[str, bytes]]
) -> None:
    """Before anything is made; with the way out, and without what the server echoes."""
    s3_server.fault = lambda method, path: "AccessDenied" if method == "PUT" else None
    with pytest.raises(Unavailable) as refused:
        upload(f"s3://{bucket}/team", folders)
    words = str(refused.value)
    assert words.startswith(
        f"the code cannot be put into s3://{bucket}/team: the bucket {bucket} may not be used"
    )
    assert "s3:PutObject" in words
    assert SECRET not in words


@pytest.mark.parametrize(
    "module", ["mlspec_reconciler.cli", "mlspec_reconciler.workspace", "mlspec_runtime.__main__"]
)
def test_the_client_is_imported_only_for_a_bucket(module: str) -> None:
    """`validate` and plans must not pay for it, nor may a pod with a claim."""
    program = (
        f"import sys, {module}; print([one for one in ('boto3', 'mlspec_storage') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
