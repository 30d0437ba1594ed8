"""The set-up files agree with each other, and importing the package is light."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import isodiff
from isodiff.files import repository_root

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: version for name, version in pairs}


def every_requirement(pyproject: dict) -> list[Requirement]:
    groups = [pyproject["project"]["dependencies"], *pyproject["project"]["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group if not line.startswith("isodiff")]


def test_environment_is_python_pip_and_this_package(pyproject: dict) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert python == f"python{pyproject['project']['requires-python']}"
    assert pip == "pip"
    assert packages == {"pip": ["-e .[all]"]}


def test_extra_all_holds_every_other_extra(pyproject: dict) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    (everything,) = [Requirement(line) for line in extras["all"]]
    assert everything.extras == extras.keys() - {"all"}


def test_lock_holds_exact_public_versions_that_satisfy_every_requirement(
    pyproject: dict, locked: dict[str, str]
) -> None:
    requirements = every_requirement(pyproject)
    assert len(requirements) > 20
    for requirement in requirements:
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"
    assert [
        v for name, v in locked.items() if name != canonicalize_name(name) or not re.match(r"\d[\da-z.]*$", v)
    ] == []


def test_torch_may_be_as_old_as_promised(pyproject: dict) -> None:
    declared = {requirement.name: requirement for requirement in every_requirement(pyproject)}
    assert declared["torch"].specifier.contains("2.11.0")
    assert not declared["torch"].specifier.contains("2.10.0")


def test_import_is_light() -> None:
    heavy = ["torch", "diffusers", "matplotlib", "lpips", "torch_fidelity", "numpy"]
    code = f"import sys, isodiff, isodiff.cli; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]"


def test_version_is_the_cited_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == isodiff.__version__
    assert "independent reproduction" in citation["message"]
    assert {reference["identifiers"][0]["value"] for reference in citation["references"]} == {
        "arXiv:2407.11451",
        "arXiv:2510.05509",
    }


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in script.read_text()
    assert script.read_text().rstrip().endswith("make test")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements.lock").touch()
    return tmp_path


def test_make_names_a_missing_python(clone: Path) -> None:
    """Without Python ≥ 3.11 on PATH, the set-up stops with a sentence and not with a traceback."""
    tools = clone / "bin"
    tools.mkdir()
    for name in ("sh", "make", "touch", "test"):
        (tools / name).symlink_to(shutil.which(name))
    command, environment = [tools / "make", "setup"], {"PATH": str(tools)}
    finished = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert finished.returncode != 0
    assert "isodiff needs Python 3.11 or newer" in finished.stderr
    assert not (clone / ".venv").exists()


def test_make_installs_nothing_when_the_stamp_is_newer(clone: Path) -> None:
    def planned() -> str:
        return subprocess.run(["make", "-n", "run"], cwd=clone, capture_output=True, text=True, check=True).stdout

    (clone / ".venv").mkdir()
    (clone / ".venv" / "ready").touch()
    assert "pip install" not in planned()
    assert ".venv/bin/isodiff run" in planned()
    os.utime(clone / "pyproject.toml", (2**32, 2**32))
    assert "pip install" in planned()


def test_repository_root_is_this_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ISODIFF_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (repository_root() / "pyproject.toml").is_file()
    monkeypatch.setenv("ISODIFF_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="has no notebooks folder"):
        repository_root()


def test_package_speaks_only_of_itself() -> None:
    """No path of anyone's machine and no unfinished mark in the source."""
    marks = re.compile("/" + r"(home|Users|root|tmp|work)/\w|\bTO" + r"DO\b|\bFIX" + r"ME\b")
    sources = [*ROOT.glob("isodiff/**/*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    assert len(sources) > 10
    found = [f"{path.name}: {match[0]}" for path in sources for match in marks.finditer(path.read_text())]
    assert found == []
