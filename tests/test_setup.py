"""The set-up files agree with each other, and importing the package is light."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import isodiff

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_is_python_pip_and_this_package_in_the_cited_version() -> None:
    python, pip, packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert (pip, packages) == ("pip", {"pip": ["-e .[all]"]})
    (everything,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert everything.extras == PROJECT["optional-dependencies"].keys() - {"all"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == isodiff.__version__


def test_lock_holds_exact_public_versions_that_satisfy_every_requirement() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group if not line.startswith("isodiff")]
    assert len(requirements) > 20
    for requirement in requirements:
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"
    assert [name for name in locked if name != canonicalize_name(name)] == []
    assert [version for version in locked.values() if not re.match(r"\d[\da-z.]*$", version)] == []


def test_help_is_there_before_a_reader_waits() -> None:
    heavy = {"torch", "diffusers", "matplotlib", "lpips", "torch_fidelity", "numpy"}
    code = f"import sys; from isodiff.cli import main; main(['--help']); print({heavy} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.splitlines()[-1] == "set()"


def test_make_names_a_missing_python_and_minds_its_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "Makefile", ".")
    for name in ("pyproject.toml", "requirements.lock"):
        Path(name).touch()
    Path("bin").mkdir()
    for name in ("sh", "make", "touch", "test"):
        Path("bin", name).symlink_to(shutil.which(name))
    finished = subprocess.run(["bin/make", "setup"], env={"PATH": "bin"}, capture_output=True, text=True)
    assert finished.returncode != 0
    assert "isodiff needs Python 3.11 or newer" in finished.stderr
    Path(".venv").mkdir()  # it was not there
    Path(".venv/ready").touch()
    assert "pip install" not in subprocess.check_output(["make", "-n", "run"], text=True)
    os.utime("pyproject.toml", (2**32, 2**32))
    assert "pip install" in subprocess.check_output(["make", "-n", "run"], text=True)


def test_no_path_of_a_machine_and_no_unfinished_mark_is_in_the_source() -> None:
    marks = re.compile("/" + r"(home|Users|root|tmp|work)/\w|\bTO" + r"DO\b|\bFIX" + r"ME\b")
    sources = [*ROOT.glob("isodiff/**/*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    assert [f"{path.name}: {match[0]}" for path in sources for match in marks.finditer(path.read_text())] == []
