"""The command line: how it reads arguments, what it does with errors, and `isodiff sample`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nbformat.v4 import new_notebook
from PIL import Image

import isodiff
from isodiff import cli, course
from isodiff.diffusion import load_pipeline
from isodiff.metrics import Generator, draw_latents, to_uint8

SAMPLE = ["sample", "digits16/base", "--number", "3", "--columns", "2", "--num-steps", "2", "--device", "cpu"]


def test_version_and_module_entry() -> None:
    command = [sys.executable, "-m", "isodiff", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(isodiff.__file__).parents[1])
    assert found.stdout.strip() == f"isodiff {isodiff.__version__}"


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_names_every_command_and_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    names = cli.COMMANDS if not command else cli.COMMANDS[command].__dataclass_fields__
    positional = {"names", "models", "records", "claims", "model"}
    assert [name for name in names if name not in {"config", *positional} and name.replace("_", "-") not in text] == []


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["n=3", "lr=1e-4"], {"n": 3, "lr": 1e-4}),
        (["dataset=folder:a=b", "empty="], {"dataset": "folder:a=b", "empty": ""}),
        (["dims=[1, 2]", "flag=true"], {"dims": [1, 2], "flag": True}),
    ],
)
def test_pairs(texts: list[str], expected: dict[str, object]) -> None:
    assert cli.read_pairs(texts) == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["n"], "'n' is not NAME=VALUE"), (["=3"], "not NAME"), (["a b=3"], "not NAME"), (["n=1", "n=2"], "given twice")],
)
def test_pairs_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cli.read_pairs(texts)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("two\nlines"), 2, "isodiff: two lines\n"),
        (FileNotFoundError(), 2, "isodiff: FileNotFoundError\n"),
        (KeyboardInterrupt(), 130, "isodiff: interrupted\n"),
    ],
)
def test_an_error_of_ours_is_one_line_and_its_traceback_is_there_to_debug(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: cli.FetchWeights) -> int:
        raise error

    monkeypatch.setattr(cli.FetchWeights, "__call__", fail)
    assert cli.main(["fetch-weights"]) == status
    assert capsys.readouterr().err == said
    if status == 2:
        for arguments in (["--debug", "fetch-weights"], ["fetch-weights", "--debug"]):
            with pytest.raises(type(error)):
                cli.main(arguments)


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: cli.FetchWeights) -> int:
        raise AssertionError

    monkeypatch.setattr(cli.FetchWeights, "__call__", fail)
    with pytest.raises(AssertionError):
        cli.main(["fetch-weights"])


def test_run_passes_everything_on_and_reports_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    received = {}

    def run_notebooks(names: tuple[str, ...], **options: object) -> list[course.Page]:
        received.update(options, names=names)
        return [course.Page("02_b", new_notebook(), 0.0, received.get("failure", ""))]

    monkeypatch.setattr(course, "run_notebooks", run_notebooks)
    assert cli.main(["run", "01", "02", "--profile", "gpu", "-p", "n=3", "--output", "o"]) == 0
    options = {"profile": "gpu", "parameters": {"n": 3}, "output": Path("o"), "update": False, "jobs": None}
    assert received == {"names": ("01", "02"), **options}
    received["failure"] = "cell [3]: ValueError: no"
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
    assert cli.record_name(model, prompt) == name


def test_a_picture_holds_the_images_of_the_first_latents(tmp_path: Path) -> None:
    assert cli.main([*SAMPLE, "--seed", "5", "--batch-size", "2", "--output", str(tmp_path / "a.png")]) == 0
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    generate = Generator(load_pipeline("digits16/base"), 2)
    with torch.no_grad():
        images = to_uint8(generate(draw_latents(generate.shape, 0, 3, seed=5, stream="samples")))[:, 0].numpy()
    assert picture.shape == (2 * 17 + 1, 2 * 17 + 1, 3)
    for image, (row, column) in zip(images, ((0, 0), (0, 1), (1, 0)), strict=True):
        found = picture[1 + 17 * row : 17 + 17 * row, 1 + 17 * column : 17 + 17 * column, 0]
        assert np.abs(found.astype(int) - image).max() <= 1  # a batch of another size rounds otherwise
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_help_asks_for_no_heavy_module() -> None:
    """What is light stays light: torch alone would take longer than a reader waits for help."""
    code = "import sys; from isodiff.cli import main; main(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "False"
