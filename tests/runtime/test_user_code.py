"""User code: loading it, calling it, and telling its faults in the user's terms."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mlspec_runtime import code
from mlspec_runtime.task import TaskError


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_two_versions_of_the_same_file_live_in_one_process(tmp_path: Path) -> None:
    """Serving holds the old and the new model while it swaps; their helper modules have the same name."""
    functions = []
    for version in ("1", "2"):
        folder = write(
            tmp_path / version,
            step=f"from helper import NAME\ndef run():\n    return NAME + '{version}'\n",
            helper=f"NAME = 'helper{version}'\n",
        )
        functions.append(code.load("step.py:run", folder))
    assert [function() for function in functions] == ["helper11", "helper22"]


def test_a_module_of_the_bundle_or_an_installed_one(tmp_path: Path) -> None:
    """`package.module:function` is the other way to write an entry."""
    write(tmp_path / "b" / "own_package", module="def f():\n    return 1\n", __init__="")
    assert code.load("own_package.module:f", tmp_path / "b")() == 1
    assert code.load("statistics:mean", tmp_path / "b")([1, 3]) == 2


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        ("absent.py:f", "the code bundle has no file absent.py", "it has: entry.py"),
        ("entry.py:g", "entry.py has no function g", "it defines: f"),
        ("entry.py:x", "entry.py:x is not a function but of type int", "name a function"),
        ("no_package.m:f", "the module no_package is not installed", "`requirements`"),
    ],
)
def test_an_entry_that_is_not_there(tmp_path: Path, entry: str, message: str, hint: str) -> None:
    """The commonest mistakes of a first spec."""
    folder = write(tmp_path, entry="x = 1\ndef f():\n    pass\n")
    with pytest.raises(TaskError) as caught:
        code.load(entry, folder)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_missing_import_names_the_package_and_the_line(tmp_path: Path) -> None:
    """`requirements` is where it belongs, and the file and line say who needs it."""
    folder = write(
        tmp_path, deep="import os\nimport no_such_library.part\n", entry="import deep\ndef f():\n    pass\n"
    )
    with pytest.raises(TaskError) as caught:
        code.load("entry.py:f", folder)
    assert caught.value.message == "deep.py:2: the module no_such_library is not installed"


def test_a_missing_import_by_name_has_the_users_line(tmp_path: Path) -> None:
    """Python's own import machinery lies between, and nobody can change that."""
    folder = write(
        tmp_path, entry="import importlib\ndef f(name):\n    return importlib.import_module(name)\n"
    )
    with pytest.raises(TaskError) as caught:
        code.call(code.load("entry.py:f", folder), folder, {"name": "no_such_library"})
    assert caught.value.message == "entry.py:3: the module no_such_library is not installed"


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    """Before anything ran."""
    with pytest.raises(TaskError, match=r"entry\.py:2: SyntaxError: "):
        code.load("entry.py:f", write(tmp_path, entry="def f():\n    return (\n"))


def test_a_fault_inside_a_library_is_placed_in_the_users_file(tmp_path: Path, capfd: Any) -> None:
    """The last line of the user's own code is what they can change; our frames are not in the log."""
    folder = write(tmp_path, entry="import json\n\ndef f(text):\n    return json.loads(text)\n")
    function = code.load("entry.py:f", folder)
    with pytest.raises(TaskError) as caught:
        code.call(function, folder, {"text": "{"})
    assert caught.value.message.startswith("entry.py:4: JSONDecodeError: Expecting property name")
    log = capfd.readouterr().err
    assert 'File "entry.py", line 4, in f' in log
    assert "mlspec_runtime" not in log


def test_ending_the_process_is_an_error(tmp_path: Path) -> None:
    """`sys.exit(0)` in a script that became a function would otherwise pass for success."""
    folder = write(tmp_path, entry="import sys\ndef f():\n    sys.exit(0)\n")
    with pytest.raises(TaskError, match=r"entry\.py:3: the code ended the process"):
        code.call(code.load("entry.py:f", folder), folder, {})


def test_arguments_are_checked_before_the_call(tmp_path: Path) -> None:
    """A misspelt parameter is told with the signature, not as a TypeError after the data was loaded."""
    folder = write(tmp_path, entry="def f(train, *, rate=0.1):\n    raise AssertionError\n")
    with pytest.raises(TaskError) as caught:
        code.call(code.load("entry.py:f", folder), folder, {"rtae": 1})
    assert caught.value.message == "f() has no parameter rtae and needs train, which the spec does not give"
    assert "it takes (train, rate)" in caught.value.hint


def test_a_failed_import_can_be_tried_again(tmp_path: Path) -> None:
    """`mlspec dev` loads the mended file in the same process."""
    folder = write(tmp_path / "broken", entry="raise ValueError('no')\n")
    with pytest.raises(TaskError, match="ValueError: no"):
        code.load("entry.py:f", folder)
    assert not [name for name in sys.modules if name.startswith("mlspec_code_broken")]
    write(folder, entry="def f():\n    return 2\n")
    assert code.load("entry.py:f", folder)() == 2
