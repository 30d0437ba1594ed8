"""The command line: every kind of bad input ends in one line and exit status 2."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import isodiff
from isodiff import cli, course
from isodiff.cli_evaluate import _record_name
from isodiff.metrics import weights


def test_version_and_module_entry() -> None:
    command = [sys.executable, "-m", "isodiff", "--version"]
    finished = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(isodiff.__file__).parents[1]
    )
    assert finished.stdout.strip() == f"isodiff {isodiff.__version__}"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("run", "fetch-weights"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n=3", ("n", 3)),
        ("lr=1e-4", ("lr", 1e-4)),
        ("dataset=digits", ("dataset", "digits")),
        ("dataset=folder:a=b", ("dataset", "folder:a=b")),
        ("dims=[1, 2]", ("dims", [1, 2])),
        ("flag=true", ("flag", True)),
        ("empty=", ("empty", "")),
    ],
)
def test_key_value(text: str, expected: tuple[str, object]) -> None:
    assert cli.key_value(text) == expected


@pytest.mark.parametrize("text", ["n", "=3", "two words=3", "-=1"])
def test_key_value_refuses(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not key=value"):
        cli.key_value(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "07_missing"], "no notebook is called '07_missing'; there are 01_"),
        (["run", "04", "--profile", "tpu"], "profile is 'tpu'; 04_isometric_finetuning accepts cpu, gpu"),
        (["run", "04", "-p", "num_spteps=3"], "04_isometric_finetuning has no parameter called num_spteps"),
        (["run", "04", "-p", "overrides=three"], "overrides is 'three', which is not JSON"),
        (["run", "04", "-p", "seed=-1"], "seed is -1"),
        (["run", "04", "-p", "device=abacus"], "device is 'abacus'"),
        (["run", "04", "-p", "seed=1", "-p", "seed=2"], "seed is given twice"),
        (["run", "04", "-p", "profile=gpu"], "chosen with --profile"),
        (["run", "--update", "--profile", "gpu"], "--update rewrites the committed outputs"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert cli.main([*arguments, *(["--output", str(output)])]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("isodiff: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not output.exists()


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run", "-p", "n"], ["run", "--speed", "3"]])
def test_unusable_command_lines_are_one_line_that_points_to_the_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("isodiff: ")
    assert said.endswith(" --help\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "fetch-weights"], ["fetch-weights", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("damaged")

    monkeypatch.setattr(weights, "fetch_weights", fail)
    assert cli.main(["fetch-weights"]) == 2
    with pytest.raises(ValueError, match="damaged"):
        cli.main(arguments)


def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError

    monkeypatch.setattr(weights, "fetch_weights", fail)
    with pytest.raises(AssertionError):
        cli.main(["fetch-weights"])


def test_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "fetch_weights", interrupt)
    assert cli.main(["fetch-weights"]) == 130
    assert capsys.readouterr().err == "isodiff: interrupted\n"


def test_run_passes_everything_on_and_reports_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    received = {}

    def run_notebooks(names: list[str], **options: object) -> list[course.Outcome]:
        received.update(options, names=names)
        return [course.Outcome("01_a", None, 0.0), course.Outcome("02_b", None, 0.0, received.get("failure"))]

    monkeypatch.setattr(course, "run_notebooks", run_notebooks)
    assert cli.main(["run", "01", "02", "--profile", "gpu", "-p", "n=3", "--output", "o"]) == 0
    assert received == {
        "names": ["01", "02"],
        "profile": "gpu",
        "parameters": {"n": 3},
        "output": "o",
        "update": False,
    }
    received["failure"] = course.Failure("cell [3]", "ValueError: no")
    assert cli.main(["run"]) == 1


@pytest.mark.parametrize(
    ("model", "prompt", "name"),
    [
        ("faces32/base", None, "faces32-base"),
        ("./runs/a/", None, "runs-a"),
        ("hub:owner/name@v1", None, "owner-name_v1"),
        ("hub:owner/name", "a face", "owner-name-a_face"),
        ("hub:owner/name", "", "owner-name-no_prompt"),
    ],
)
def test_a_record_is_named_after_its_model_and_prompt(model: str, prompt: str | None, name: str) -> None:
    assert _record_name(model, prompt) == name
