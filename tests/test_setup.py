"""The set-up files agree with each other, and importing the package is light."""

from __future__ import annotations

import os
import re
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
from isodiff.paths import repository_root

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


def test_lock_satisfies_every_declared_requirement(pyproject: dict, locked: dict[str, str]) -> None:
    requirements = every_requirement(pyproject)
    assert len(requirements) > 20
    for requirement in requirements:
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_lock_holds_exact_public_versions_only(locked: dict[str, str]) -> None:
    for name, version in locked.items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"


def test_torch_may_be_as_old_as_promised(pyproject: dict) -> None:
    declared = {requirement.name: requirement for requirement in every_requirement(pyproject)}
    assert declared["torch"].specifier.contains("2.11.0")
    assert not declared["torch"].specifier.contains("2.10.0")


def test_import_is_light() -> None:
    heavy = ["torch", "diffusers", "matplotlib", "lpips", "torch_fidelity", "numpy"]
    code = f"import sys, isodiff, isodiff.cli; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]"


def test_only_the_package_is_installed(pyproject: dict) -> None:
    assert pyproject["tool"]["setuptools"]["packages"]["find"]["include"] == ["isodiff", "isodiff.*"]


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


def test_make_names_a_missing_python(tmp_path: Path) -> None:
    """Without Python ≥ 3.11 on PATH, the set-up stops with a sentence and not with a traceback."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements.lock").touch()
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "make", "touch", "test"):
        for folder in os.environ["PATH"].split(os.pathsep):
            if (Path(folder) / name).exists():
                (tools / name).symlink_to(Path(folder) / name)
                break
    finished = subprocess.run(
        [tools / "make", "setup"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert finished.returncode != 0
    assert "isodiff needs Python 3.11 or newer" in finished.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_installs_nothing_when_the_stamp_is_newer(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "requirements.lock").touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "ready").touch()
    finished = subprocess.run(["make", "-n", "run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install" not in finished.stdout
    assert ".venv/bin/isodiff run" in finished.stdout
    os.utime(tmp_path / "pyproject.toml", (2**32, 2**32))
    finished = subprocess.run(["make", "-n", "run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install" in finished.stdout


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
