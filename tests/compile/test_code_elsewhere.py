"""Code that a function can import and that does not lie below its spec: taken along when it is the project's, otherwise refused.

What is neither would be a change that no plan sees: the function runs other code, and "Nothing changes".
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlspec.diagnostics import Diagnostic
from mlspec_reconciler import bundle, load, searchpath, workspace
from mlspec_reconciler.clusters.local import processes
from mlspec_reconciler.clusters.memory import MemoryCluster
from mlspec_reconciler.searchpath import SearchPath
from mlspec_reconciler.step import DesiredState
from mlspec_runtime import environment

SPEC = """\
apiVersion: mlspec.dev/v1alpha1
kind: Dataset
metadata: {name: d}
spec: {source: {function: {code: "ENTRY", requirements: [REQUIREMENTS], include: [INCLUDE]}}}
"""
LOAD = "from ourpkg import rows as _rows\n\n\ndef rows():\n    return _rows()\n"
PACKAGE = 'def rows():\n    return [{"x": 1.0}]\n'
FINDER = """\
MAPPING: dict[str, str] = {'ourpkg': 'FOLDER/ourpkg'}
NAMESPACES: dict[str, list[str]] = {}


def install():
    import sys
    from importlib.util import spec_from_file_location

    class Finder:
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name in MAPPING:
                return spec_from_file_location(name, MAPPING[name] + "/__init__.py")

    sys.meta_path.append(Finder)
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Machine:
    """A project, a folder beside it, and the folder of installed packages of a Python."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.beside = folder / "beside"
        self.site = folder / "python" / "lib" / "site-packages"
        self.pythonpath = ""
        for one in (self.root, self.beside, self.site):
            one.mkdir(parents=True)
        self.spec()
        write(self.root, {"ml/load.py": LOAD})

    def spec(self, entry: str = "load.py:rows", requirements: str = "", include: str = "") -> None:
        """Write the one function."""
        text = SPEC.replace("ENTRY", entry).replace("REQUIREMENTS", requirements).replace("INCLUDE", include)
        write(self.root, {"ml/specs.yaml": text})

    def around(self) -> SearchPath:
        """Where this Python looks."""
        return searchpath.search_path(self.root, self.pythonpath, [self.site])

    def gathered(self, *, here: bool = True) -> tuple[bundle.Bundle, list[Diagnostic]]:
        """The bundle of the function."""
        loaded = load.load([self.root], root=self.root)
        assert loaded.project is not None, loaded.diagnostics
        bundles, problems = bundle.gather(loaded.project, self.root, self.around(), here=here)
        return next(iter(bundles.values())), problems

    def taken(self) -> bundle.Bundle:
        """The bundle; nothing is wrong with it."""
        found, problems = self.gathered()
        assert problems == []
        return found

    def staged(self, place: Path) -> bundle.Bundle:
        """What the controller makes of the revision that was applied, on a machine without any of this."""
        loaded = load.load([self.root], root=self.root)
        assert loaded.project is not None
        code, _ = bundle.gather(loaded.project, self.root, self.around())
        space = workspace.Workspace(self.root, place)
        wanted = DesiredState(loaded.project, loaded.project.settings.targets["local"], code)
        opened = workspace.Opened(space, (), loaded.texts, wanted, "local", self.around().inside)
        again = workspace.open_applied(space, workspace.stage(opened, MemoryCluster()).record)
        assert again is not None
        return replace(next(iter(again.code.values())), elsewhere={})

    def asked(self, module: str) -> str:
        """The file from which this Python really imports a module; empty when it has none."""
        program = f"import site; site.addsitedir({str(self.site)!r}); import {module} as m; print(m.__file__)"
        variables = {**os.environ, "PYTHONPATH": self.pythonpath}
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            env=variables,
            cwd=self.site,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- the ways in which people lay out a step and its helper

OWN_ROWS = 'def rows():\n    return [{"x": 1.0}]\n'
WAYS: dict[str, tuple[dict[str, str], str, str]] = {
    "import in a body": (
        {"load.py": "def rows():\n    from helper import rows as r\n    return r()\n", "helper.py": OWN_ROWS},
        "helper.py",
        "seen",
    ),
    "namespace folder": (
        {"load.py": "from lib.helper import rows\n", "lib/helper.py": OWN_ROWS},
        "lib/helper.py",
        "seen",
    ),
    "package in src": (
        {"load.py": LOAD, "src/ourpkg/__init__.py": OWN_ROWS},
        "src/ourpkg/__init__.py",
        "seen",
    ),
    "dynamic import": (
        {
            "load.py": "import importlib\n\n\ndef rows():\n    return importlib.import_module('helper').rows()\n",
            "helper.py": OWN_ROWS,
        },
        "helper.py",
        "seen",
    ),
    "included data": (
        {
            "load.py": "import json\n\n\ndef rows():\n    return json.load(open('rows.json'))\n",
            "rows.json": '[{"x": 1.0}]',
        },
        "rows.json",
        "seen",
    ),
    "data that is not listed": (
        {
            "load.py": "import json\n\n\ndef rows():\n    return json.load(open('r.json'))\n",
            "r.json": '[{"x": 1.0}]',
        },
        "r.json",
        "No such file or directory: 'r.json'",
    ),
    "a name of Python's own": (
        {"load.py": "from types import rows as r\n\n\ndef rows():\n    return r()\n", "types.py": OWN_ROWS},
        "types.py",
        "ml/types.py has the name of Python's own module types",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_edit_of_what_a_function_uses_is_seen_or_the_code_is_refused(
    machine: Machine, tmp_path: Path, way: str
) -> None:
    """A change in a helper that leaves an old result is the bug of many pipelines: zenml-io/zenml#1011."""
    texts, edited, outcome = WAYS[way]
    write(machine.root, {f"ml/{name}": text for name, text in texts.items()})
    machine.spec(include="rows.json" if "rows.json" in texts else "")
    results = []
    for x in ("1.0", "99.0"):
        write(machine.root, {f"ml/{edited}": texts[edited].replace("1.0", x)})
        found, problems = machine.gathered()
        if problems:
            assert outcome in problems[0].message
            return
        bundle.store(found, tmp_path)
        program = (
            "import sys, pathlib; from mlspec_runtime import code; folder = pathlib.Path(sys.argv[1]); "
            "print(code.call(code.load('load.py:rows', folder), folder, {}, within=folder))"
        )
        command = [sys.executable, "-P", "-c", program, str(tmp_path / "code" / found.digest[:16])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=machine.root / "ml", check=False)
        results.append(done.stdout.strip() or done.stderr)
    if outcome == "seen":
        assert results == ["[{'x': 1.0}]", "[{'x': 99.0}]"]
    else:
        assert all(outcome in result for result in results)


# --- what lies in the project


def src_beside_the_spec(machine: Machine) -> str:
    return "ml/src"


def src_at_the_root(machine: Machine) -> str:
    return "src"


def folder_on_pythonpath(machine: Machine) -> str:
    machine.pythonpath = f"{machine.root}/lib/python"
    return "lib/python"


def root_on_pythonpath(machine: Machine) -> str:
    machine.pythonpath = str(machine.root)
    return "."


def through_a_link_on_pythonpath(machine: Machine) -> str:
    (machine.beside / "link").symlink_to(machine.root)
    machine.pythonpath = f"{machine.beside}/link/lib"
    return "lib"


def editable_folder(machine: Machine) -> str:
    write(machine.site, {"_ourpkg.pth": f"{machine.root}/packages/ours/src\n"})
    return "packages/ours/src"


def editable_finder(machine: Machine) -> str:
    write(
        machine.site,
        {
            "__editable__.ourpkg-1.0.pth": "import __editable___ourpkg_finder; __editable___ourpkg_finder.install()",
            "__editable___ourpkg_finder.py": FINDER.replace("FOLDER", f"{machine.root}/packages/ours"),
        },
    )
    return "packages/ours"


def installed_copy(machine: Machine) -> str:
    url = f'{{"dir_info": {{}}, "url": "file://{machine.root}/packages/ours"}}'
    write(
        machine.site,
        {"ourpkg-1.0.dist-info/direct_url.json": url, "ourpkg/__init__.py": "def rows():\n    return []\n"},
    )
    return "packages/ours/src"


LAYOUTS: list[Callable[[Machine], str]] = [
    src_beside_the_spec,
    src_at_the_root,
    folder_on_pythonpath,
    root_on_pythonpath,
    through_a_link_on_pythonpath,
    editable_folder,
    editable_finder,
    installed_copy,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: one.__name__)
def test_a_package_of_the_project_is_part_of_the_bundle(
    machine: Machine, tmp_path: Path, layout: Callable[[Machine], str]
) -> None:
    """Wherever it lies: an edit changes the identity, it is importable in the run, and the controller sees the same code."""
    folder = layout(machine)
    write(machine.root, {f"{folder}/ourpkg/__init__.py": "from .deep import rows\n"})
    write(machine.root, {f"{folder}/ourpkg/deep.py": PACKAGE})
    found = machine.taken()
    assert set(found.files) == {"load.py", "ourpkg/__init__.py", "ourpkg/deep.py"}
    assert machine.staged(tmp_path / "home") == replace(found, elsewhere={})

    bundle.store(found, tmp_path / "store")
    code = tmp_path / "store" / "code" / found.digest[:16]
    program = (
        "import sys, pathlib; from mlspec_runtime import code; "
        "print(code.load('load.py:rows', pathlib.Path(sys.argv[1]))(), sys.modules['ourpkg'].__file__)"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program, str(code)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == f"[{{'x': 1.0}}] {code}/ourpkg/__init__.py"

    write(machine.root, {f"{folder}/ourpkg/deep.py": PACKAGE.replace("1.0", "99.0")})
    assert machine.taken().digest != found.digest


def test_what_nobody_imports_stays_behind(machine: Machine) -> None:
    """A folder on the search path is not taken as a whole: an edit of its other modules trains nothing."""
    write(machine.root, {"src/ourpkg/__init__.py": PACKAGE, "src/ourpkg/other.py": "", "src/another.py": ""})
    assert set(machine.taken().files) == {"load.py", "ourpkg/__init__.py"}


def test_data_of_a_package_is_included_beside_it(machine: Machine, tmp_path: Path) -> None:
    """A package finds its data by its own path, so it must lie there in the bundle too."""
    package = 'from pathlib import Path\n\n\ndef rows():\n    return Path(__file__).with_name("r.json").read_text()\n'
    write(machine.root, {"src/ourpkg/__init__.py": package, "src/ourpkg/r.json": "[]", "ml/r.json": "{}"})
    machine.spec(include='"ourpkg/*.json", "*.json"')
    found = machine.taken()
    assert (found.files["ourpkg/r.json"], found.files["r.json"]) == (b"[]", b"{}")
    assert machine.staged(tmp_path / "home") == replace(found, elsewhere={})


def test_a_wide_pattern_takes_no_more_of_another_folder_than_the_package(machine: Machine) -> None:
    """The whole project may be on PYTHONPATH; its data, environments and other packages are not meant."""
    write(machine.root, {"ourpkg/__init__.py": PACKAGE, "ourpkg/r.json": "[]", "data/big.json": "[]"})
    machine.pythonpath = str(machine.root)
    machine.spec(include='"**/*.json"')
    assert set(machine.taken().files) == {"load.py", "ourpkg/__init__.py", "ourpkg/r.json"}


def test_a_wide_pattern_means_the_same_in_the_staged_revision(machine: Machine, tmp_path: Path) -> None:
    """The controller would otherwise see other code than the plan, and train again."""
    write(machine.root, {"ml/src/ourpkg/__init__.py": PACKAGE, "ml/src/ourpkg/other.py": "", "ml/a/b.py": ""})
    machine.spec(include='"**/*.py"')
    assert machine.staged(tmp_path / "home") == replace(machine.taken(), elsewhere={})


def test_a_package_may_lie_in_several_folders(machine: Machine) -> None:
    """Namespace packages have parts; a regular package of the name hides those that are none."""
    write(
        machine.root,
        {"ml/load.py": "from lib.a import x\nfrom lib.b import y\n\n\ndef rows():\n    return []\n"},
    )
    write(machine.root, {"ml/lib/a.py": "x = 1\n", "src/lib/b.py": "y = 1\n"})
    assert set(machine.taken().files) == {"load.py", "lib/a.py", "lib/b.py"}
    write(machine.root, {"src/lib/__init__.py": "", "src/lib/a.py": "x = 2\n"})
    assert machine.taken().files["lib/a.py"] == b"x = 2\n"


def test_the_published_package_is_meant_when_it_is_required(machine: Machine) -> None:
    """A repository may hold a library and specs that use a release of it."""
    write(machine.root, {"src/ourpkg/__init__.py": PACKAGE})
    write(machine.beside, {"ourpkg/__init__.py": PACKAGE})
    machine.pythonpath = str(machine.beside)
    machine.spec(requirements="OurPkg==1.2")
    assert set(machine.taken().files) == {"load.py"}


def test_the_distribution_of_an_editable_install_may_be_required(machine: Machine) -> None:
    """Its name need not be that of the module. The run gets the published one, because an editable install satisfies nothing."""
    finder_elsewhere(machine)
    assert [one.code for one in machine.gathered()[1]] == ["outside-code"]
    machine.spec(requirements="our_dist>=1")
    assert set(machine.taken().files) == {"load.py"}


# --- what lies elsewhere


def package(machine: Machine) -> str:
    write(machine.beside, {"ourpkg/__init__.py": PACKAGE})
    machine.pythonpath = str(machine.beside)
    return f"{machine.beside}/ourpkg/__init__.py (PYTHONPATH)"


def module(machine: Machine) -> str:
    write(machine.beside, {"ourpkg.py": PACKAGE})
    machine.pythonpath = f"{machine.site}{os.pathsep}{machine.beside}"
    return f"{machine.beside}/ourpkg.py (PYTHONPATH)"


def part_of_a_namespace(machine: Machine) -> str:
    write(
        machine.root,
        {"ml/load.py": "def rows():\n    from ourpkg.deep import part\n    return part.rows()\n"},
    )
    write(machine.beside, {"ourpkg/deep/part.py": PACKAGE})
    machine.pythonpath = str(machine.beside)
    return f"{machine.beside}/ourpkg/deep/part.py (PYTHONPATH)"


def archive(machine: Machine) -> str:
    with zipfile.ZipFile(machine.beside / "libs.zip", "w") as file:
        file.writestr("ourpkg/__init__.py", PACKAGE)
    machine.pythonpath = f"{machine.beside}/libs.zip"
    return f"{machine.beside}/libs.zip/ourpkg/__init__.py (PYTHONPATH)"


def compiled(machine: Machine) -> str:
    write(machine.beside, {"ourpkg.so": "not read"})
    machine.pythonpath = str(machine.beside)
    return f"{machine.beside}/ourpkg.so (PYTHONPATH)"


def hides_the_installed_one(machine: Machine) -> str:
    write(machine.site, {"ourpkg/__init__.py": PACKAGE})
    return package(machine)


def hides_a_folder_of_ours(machine: Machine) -> str:
    write(machine.root, {"ml/load.py": "from ourpkg.rows import rows\n", "ml/ourpkg/rows.py": PACKAGE})
    return package(machine)


def editable_elsewhere(machine: Machine) -> str:
    write(machine.beside, {"src/ourpkg/__init__.py": PACKAGE})
    write(machine.site, {"_ourpkg.pth": f"# ours\n\n{machine.beside}/src\n"})
    return f"{machine.beside}/src/ourpkg/__init__.py (_ourpkg.pth)"


def finder_elsewhere(machine: Machine) -> str:
    write(machine.beside, {"ourpkg/__init__.py": PACKAGE})
    write(machine.site, {"o.pth": "import o_finder; o_finder.install()"})
    write(machine.site, {"o_finder.py": FINDER.replace("FOLDER", str(machine.beside))})
    url = f'{{"dir_info": {{"editable": true}}, "url": "file://{machine.beside}"}}'
    write(machine.site, {"our_dist-1.0.dist-info/direct_url.json": url})
    write(machine.site, {"our_dist-1.0.dist-info/RECORD": "o.pth,sha256=x,9\no_finder.py,sha256=y,9\n"})
    return f"{machine.beside}/ourpkg/__init__.py (the editable install of our-dist)"


def finder_that_nobody_knows(machine: Machine) -> str:
    write(machine.beside, {"python/ourpkg/__init__.py": PACKAGE})
    url = f'{{"dir_info": {{"editable": true}}, "url": "file://{machine.beside}"}}'
    write(machine.site, {"our_pkg-1.0.dist-info/direct_url.json": url})
    return f"{machine.beside}/python/ourpkg/__init__.py (the editable install of our-pkg)"


ELSEWHERE: list[Callable[[Machine], str]] = [
    package,
    module,
    part_of_a_namespace,
    archive,
    compiled,
    hides_the_installed_one,
    hides_a_folder_of_ours,
    editable_elsewhere,
    finder_elsewhere,
    finder_that_nobody_knows,
]


@pytest.mark.parametrize("place", ELSEWHERE, ids=lambda one: one.__name__)
def test_code_outside_of_the_project_is_refused(machine: Machine, place: Callable[[Machine], str]) -> None:
    """An edit of it would be no change. The error stands at the import and names the file and the way out."""
    where = place(machine)
    _, problems = machine.gathered()
    assert [(one.severity, one.code) for one in problems] == [("error", "outside-code")]
    assert problems[0].message.startswith(f"ourpkg comes from {where}, which is")
    line = (machine.root / "ml/load.py").read_text().splitlines()[problems[0].mark.line - 1]
    mark = problems[0].mark
    assert (mark.path, line[mark.column - 1 :][: mark.length].partition(".")[0]) == ("ml/load.py", "ourpkg")
    assert "into ml/ or its src/" in problems[0].hint
    assert "`requirements`" in problems[0].hint


@pytest.mark.parametrize("place", [*ELSEWHERE[:4], *ELSEWHERE[5:9]], ids=lambda one: one.__name__)
def test_it_is_found_where_python_finds_it(machine: Machine, place: Callable[[Machine], str]) -> None:
    """The plan looks by paths, without importing; Python itself is the oracle."""
    name = "ourpkg.deep.part" if place is part_of_a_namespace else "ourpkg"
    place(machine)
    found = machine.around().find(name)
    assert found is not None
    assert str(found.file) == machine.asked(name)


@pytest.mark.parametrize("layout", ["src", "."])
@pytest.mark.parametrize("place", ["project", "beside"])
def test_a_real_editable_install(machine: Machine, layout: str, place: str) -> None:
    """What a build backend itself writes for `pip install -e`; hatchling is the one that builds mlspec."""
    folder = {"project": machine.root / "packages/ours", "beside": machine.beside}[place]
    write(folder, {f"{layout}/ourpkg/__init__.py": PACKAGE})
    write(
        folder,
        {
            "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            '[project]\nname = "ourpkg"\nversion = "1.0"\n'
            f'[tool.hatch.build]\ndev-mode-dirs = ["{layout}"]\n'
            f'[tool.hatch.build.targets.wheel]\npackages = ["{layout}/ourpkg"]\n'
        },
    )
    program = f"from hatchling.build import build_editable as build; print(build({str(machine.beside)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(machine.beside / done.stdout.split()[-1]) as wheel:
        wheel.extractall(machine.site)
    assert machine.asked("ourpkg") == str(folder / layout / "ourpkg/__init__.py")
    if place == "project":
        assert set(machine.taken().files) == {"load.py", "ourpkg/__init__.py"}
    else:
        found = machine.around().find("ourpkg")
        assert found is not None
        assert str(found.file) == machine.asked("ourpkg")


def test_what_is_installed_is_no_ones_folder(machine: Machine) -> None:
    """Packages are known by their versions, also on PYTHONPATH, where environment modules and Nix put them; they go before
    editable installs of the same name."""
    write(machine.site, {"ourpkg/__init__.py": PACKAGE, "o.pth": str(machine.beside)})
    write(machine.beside, {"ourpkg/__init__.py": PACKAGE})
    assert set(machine.taken().files) == {"load.py"}
    assert machine.asked("ourpkg") == f"{machine.site}/ourpkg/__init__.py"
    (machine.site / "o.pth").unlink()
    machine.pythonpath = str(machine.site)
    assert set(machine.taken().files) == {"load.py"}


def test_a_function_that_is_itself_elsewhere_is_refused(machine: Machine) -> None:
    """`package.module:function` names code as an import does."""
    package(machine)
    machine.spec("ourpkg:rows")
    found, problems = machine.gathered()
    assert (found.files, [one.code for one in problems]) == ({}, ["outside-code"])
    assert problems[0].mark.path == "ml/specs.yaml"
    machine.pythonpath = ""
    assert machine.gathered() == (bundle.Bundle("", {}), [])


def test_a_module_that_a_package_of_the_project_lacks_is_named(machine: Machine) -> None:
    """It cannot be an installed one, because the package of the project hides that."""
    write(machine.root, {"src/ourpkg/__init__.py": ""})
    machine.spec("ourpkg.train:fit")
    _, problems = machine.gathered()
    assert [one.message for one in problems] == [
        "Dataset/d: ourpkg.train does not exist; there is only ourpkg/__init__.py"
    ]


def test_type_checkers_may_look_elsewhere(machine: Machine) -> None:
    """What is never imported when the function runs cannot change what it does."""
    package(machine)
    text = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import ourpkg\n\n\ndef rows():\n    return []\n"
    write(machine.root, {"ml/load.py": text})
    assert set(machine.taken().files) == {"load.py"}


def test_one_error_for_each_import(machine: Machine) -> None:
    """Each line has to be changed, and each is told once, however many functions see it."""
    package(machine)
    write(
        machine.root,
        {"ml/load.py": "import helper\nfrom ourpkg import a, b, rows\n", "ml/helper.py": "import ourpkg.c\n"},
    )
    spec = (machine.root / "ml/specs.yaml").read_text()
    write(machine.root, {"ml/more.yaml": spec.replace("name: d", "name: e")})
    _, problems = machine.gathered()
    assert sorted(str(one.mark) for one in problems) == ["ml/helper.py:1:8", "ml/load.py:2:6"]


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ('sys.path.insert(0, "FOLDER")', 20),
        ('sys.path.append("FOLDER")', 17),
        ('sys.path += ["FOLDER"]', 14),
        ('sys.path[:0] = ["FOLDER", *sys.path]', 17),
        ('import site; site.addsitedir("FOLDER")', 30),
    ],
)
def test_a_path_that_the_code_adds_itself_is_refused(machine: Machine, line: str, column: int) -> None:
    """It would be searched before all else, also for modules of the project."""
    write(
        machine.root,
        {"ml/load.py": f"import sys\n{line.replace('FOLDER', str(machine.beside))}\ndef rows(): pass\n"},
    )
    _, problems = machine.gathered()
    assert [(one.code, str(one.mark)) for one in problems] == [("outside-code", f"ml/load.py:2:{column}")]
    assert str(machine.beside) in problems[0].message
    assert machine.gathered(here=False)[1] == []


@pytest.mark.parametrize(
    ("requirement", "refused"),
    [
        ("ourpkg @ file:///home/me/ourpkg", True),
        ("ourpkg@file:///home/me/ourpkg-1.0-py3-none-any.whl", True),
        ("ourpkg @ file:///srv/ourpkg-1.0-py3-none-any.whl#sha256=0123", False),
        ("ourpkg @ https://example.org/ourpkg-1.0-py3-none-any.whl", False),
        ("ourpkg==1.0", False),
    ],
)
def test_a_requirement_of_this_machine_is_refused(machine: Machine, requirement: str, refused: bool) -> None:
    """The environment is known by the words of its requirements; a folder changes under the same words."""
    machine.spec(requirements=f'"{requirement}"')
    _, problems = machine.gathered()
    assert [one.code for one in problems] == ["outside-code"] * refused


def test_on_kubernetes_the_image_may_have_it(machine: Machine) -> None:
    """A company's image holds what is an editable install on a laptop: the plan warns, and cannot know better."""
    package(machine)
    _, problems = machine.gathered(here=False)
    assert [(one.severity, one.code) for one in problems] == [("warning", "outside-code")]
    assert "pods have it only from their image" in problems[0].message


# --- what the process of a step may import


def test_processes_inherit_only_installed_packages(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan did not see must not be importable, whatever the shell of the caller says."""
    own = Path(searchpath.__file__).parents[1]
    entries = [str(machine.beside), str(machine.site), str(machine.root / "src"), str(own), ""]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entries))
    assert processes.inherited()["PYTHONPATH"] == f"{machine.site}{os.pathsep}{own}"
    monkeypatch.setenv("PYTHONPATH", str(machine.beside))
    assert "PYTHONPATH" not in processes.inherited()


def test_a_step_does_not_see_the_callers_pythonpath(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real start of a process: a module that only the caller's shell knows is not importable."""
    write(machine.beside, {"plugin.py": ""})
    monkeypatch.setenv("PYTHONPATH", str(machine.beside))
    log = machine.beside / "log"
    program = "import importlib.util as u; print(u.find_spec('plugin'), bool(u.find_spec('mlspec_runtime')))"
    process = processes.start([sys.executable, "-P", "-c", program], "test/1", log, machine.beside)
    assert process.popen is not None
    assert process.popen.wait(30) == 0
    assert log.read_text() == "None True\n"


def test_an_editable_install_satisfies_no_requirement(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`requirements: [ourpkg==1.0]` names the release, not what somebody works on under its version."""
    write(
        machine.site, {"ourpkg-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ourpkg\nVersion: 1.0\n"}
    )
    monkeypatch.syspath_prepend(machine.site)
    wanted = environment.Requirement("ourpkg==1.0")
    assert environment.satisfied(wanted)
    url = f'{{"dir_info": {{"editable": true}}, "url": "file://{machine.beside}"}}'
    write(machine.site, {"ourpkg-1.0.dist-info/direct_url.json": url})
    assert not environment.satisfied(wanted)
