"""The optional compiled build: only when asked for, complete, and clear when it fails."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from kvstore.compiled import MODULES, form
from tests.pure import demand_pure_python

ROOT = Path(__file__).parent.parent
PACKAGE = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "build_tools")


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build needs: builds leave folders behind."""
    for name in PACKAGE:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "kvstore", tmp_path / "kvstore", ignore=ignore)
    return tmp_path


def test_every_module_of_the_list_is_there() -> None:
    assert [name for name in MODULES if not (ROOT / f"kvstore/{name}.py").exists()] == []
    assert len(set(MODULES)) == len(MODULES)


def test_the_core_does_without_mypys_helpers() -> None:
    # kvstore.raft imports the standard library only, compiled or not.
    for path in (ROOT / "kvstore/raft").glob("*.py"):
        assert "mypy_extensions" not in path.read_text()


def test_a_half_compiled_package_says_so(tmp_path: Path) -> None:
    # What is next to a source under an extension's name is what an import would take.
    (tmp_path / "raft").mkdir()
    shutil.copy(ROOT / "kvstore/compiled.py", tmp_path)
    (tmp_path / "raft/log.py").touch()
    (tmp_path / f"raft/raft{EXTENSION_SUFFIXES[0]}").touch()

    half = runpy.run_path(str(tmp_path / "compiled.py"))

    assert half["compiled"]() == ["raft/raft"]
    assert half["form"]() == f"1 of {len(MODULES)} modules compiled"


def test_the_version_tells_the_form() -> None:
    told = run(sys.executable, "-m", "kvstore.cli.kvstore", "--version", cwd=ROOT)

    assert told.stdout.strip().endswith(f"({form()})")


def test_planted_bugs_are_refused_on_compiled_modules() -> None:
    if form() == "pure Python":
        demand_pure_python()
    else:
        with pytest.raises(RuntimeError, match=r"on pure Python only, but .* is compiled"):
            demand_pure_python()


SIMULATE = """
from kvstore.compiled import form
from tests.sim import cluster, profile
print(form())
for name in sorted({*profile.PROFILES} - {"script"}):
    for seed in range(5):
        print(name, cluster.run(seed, name, 3_000))
"""


@pytest.mark.compiled
def test_the_simulated_core_takes_the_same_steps_in_both_forms(tree: Path) -> None:
    # A digest is over every event of a run: what each member sent, stored, applied and answered.
    compiled = run(sys.executable, "-c", SIMULATE, cwd=ROOT, PYTHONPATH=str(ROOT))
    pure = run(sys.executable, "-c", SIMULATE, cwd=tree, PYTHONPATH=f"{tree}:{ROOT}")

    runs = [told.stdout.splitlines() for told in (compiled, pure)]
    assert [lines[:1] for lines in runs] == [["compiled"], ["pure Python"]], compiled.stderr
    assert all(line.endswith(": passed") for line in runs[1][1:])
    assert runs[0][1:] == runs[1][1:]


@pytest.mark.timeout(600)
def test_a_wheel_is_compiled_only_when_asked_for(tree: Path, tmp_path: Path) -> None:
    # In the compiled tree itself, where the C compiler has nothing left to do.
    asked = form() == "compiled"
    built = run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(tmp_path / "wheels"), "."),
        cwd=ROOT if asked else tree,
        KVSTORE_COMPILE="1" if asked else "",
    )
    assert built.returncode == 0, built.stderr

    [wheel] = (tmp_path / "wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    extensions = {name.partition(".")[0] for name in names if name.endswith(".so")}
    expected = {"kvstore__mypyc", *(f"kvstore/{name}" for name in MODULES)} if asked else set()
    assert extensions == expected
    assert wheel.name.endswith("none-any.whl") != asked
    assert {f"kvstore/{name}.py" for name in MODULES} <= set(names), "the fallback"


NO_MYPYC = """
import runpy, sys
sys.modules["mypyc"] = None
sys.argv = ["setup.py", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""
EDITABLE = """
import sys
sys.path.insert(0, "build_tools")
import backend
backend.build_editable("wheels")
"""


@pytest.mark.parametrize(
    ("command", "environment", "text"),
    [
        (["-c", NO_MYPYC], {"KVSTORE_COMPILE": "1"}, "there is no mypyc"),
        (["-c", EDITABLE], {"KVSTORE_COMPILE": "1"}, "cannot be compiled"),
        (["setup.py", "build_ext"], {"KVSTORE_COMPILE": "yes"}, "not 'yes'"),
        pytest.param(
            ["setup.py", "build_ext"],
            {"KVSTORE_COMPILE": "1", "CC": "false"},
            "the C compiler failed",
            marks=[pytest.mark.slow, pytest.mark.timeout(600)],
        ),
    ],
    ids=["no mypyc", "editable", "no choice", "no compiler"],
)
def test_a_build_that_cannot_be_compiled_fails_and_says_why(
    tree: Path, command: list[str], environment: dict[str, str], text: str
) -> None:
    built = run(sys.executable, *command, cwd=tree, **environment)

    assert built.returncode == 1
    assert text in built.stderr
    assert not list(tree.rglob("*.so"))
