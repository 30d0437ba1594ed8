"""The command line: how it reads arguments, what it does with errors, `isodiff sample` and `reproduce`."""

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from nbformat.v4 import new_notebook
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import isodiff
from isodiff import cli, course
from isodiff.diffusion import TrainingInterrupted, load_pipeline
from isodiff.metrics import Generator, draw_latents, to_uint8
from isodiff.reproduce import CLAIMS

from .reproduce.synthetic import write_records


@pytest.mark.parametrize(("option", "words"), [("--version", [isodiff.__version__]), ("--help", cli.COMMANDS)])
def test_the_module_is_the_command_and_tells_its_version_and_commands(option: str, words: Collection[str]) -> None:
    said = subprocess.check_output([sys.executable, "-m", "isodiff", option], text=True)
    assert [word for word in words if word not in said] == []


def test_pairs_are_json_where_they_can_be() -> None:
    texts = ["n=3", "lr=1e-4", "dataset=folder:a=b", "empty=", "dims=[1, 2]", "flag=true"]
    expected = {"n": 3, "lr": 1e-4, "dataset": "folder:a=b", "empty": "", "dims": [1, 2], "flag": True}
    assert cli.read_pairs(texts) == expected
    for bad, message in ((["n"], "'n' is not NAME=VALUE"), (["a b=3"], "not NAME"), (["n=1", "n=2"], "given twice")):
        with pytest.raises(ValueError, match=message):
            cli.read_pairs(bad)


ERRORS = [
    (ValueError("two\nlines"), 2, "two lines"),
    (FileNotFoundError(), 2, "FileNotFoundError"),
    (TrainingInterrupted("saved", 15), 143, "saved"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


def test_an_error_of_ours_is_one_line_and_a_defect_or_all_that_one_debugs_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.FetchWeights, "__call__", command := Mock())
    for command.side_effect, status, said in ERRORS:
        assert cli.main(["fetch-weights"]) == status
        assert capsys.readouterr().err == f"isodiff: {said}\n"
    for arguments, command.side_effect in (("", KeyError), ("--debug ", ValueError)):
        with pytest.raises(command.side_effect):
            cli.main(f"{arguments}fetch-weights".split())


def test_run_passes_everything_on_and_reports_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    page = course.Page("02_b", new_notebook(), 0.0)
    monkeypatch.setattr(course, "run_notebooks", run_notebooks := Mock(return_value=[page]))
    assert cli.main(["run", "01", "02", "--profile", "gpu", "-p", "n=3", "--output", "o"]) == 0
    options = {"profile": "gpu", "parameters": {"n": 3}, "output": Path("o"), "update": False, "jobs": None}
    run_notebooks.assert_called_once_with(("01", "02"), **options)
    page.failure = "cell [3]: ValueError: no"
    assert cli.main(["run"]) == 1


def test_a_record_is_named_after_its_model_and_prompt() -> None:
    assert cli.record_name("faces32/base", None) == "faces32-base"
    assert cli.record_name("./runs/a/", "") == "runs-a-no_prompt"
    assert cli.record_name("hub:owner/name@v1", "a face") == "owner-name_v1-a_face"


def test_a_picture_holds_the_images_of_the_first_latents(tmp_path: Path) -> None:
    command = "sample digits16/base --number 3 --columns 2 --num-steps 2 --seed 5 --batch-size 2 --device cpu --output"
    assert cli.main([*command.split(), str(tmp_path / "a.png")]) == 0
    picture = pil_to_tensor(Image.open(tmp_path / "a.png")).int()
    generate = Generator(load_pipeline("digits16/base"), 2)
    with torch.no_grad():
        images = to_uint8(generate(draw_latents(generate.shape, 0, 3, seed=5, stream="samples")))[:, 0].int()
    assert picture.shape == (3, 2 * 17 + 1, 2 * 17 + 1)
    for image, row, column in zip(images, (1, 1, 18), (1, 18, 1), strict=True):
        found = picture[0, row : row + 16, column : column + 16]
        assert (found - image).abs().max() <= 1  # a batch of another size rounds otherwise
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A course with nothing in it."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("ISODIFF_ROOT", str(tmp_path))
    return tmp_path


def test_the_list_has_every_claim_with_what_decides_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if not line.startswith(" ")] == list(CLAIMS)
    assert all(claim.statement in text and (claim.protocol or claim.reason) in text for claim in CLAIMS.values())


def test_a_report_is_made_from_records_alone(capsys: pytest.CaptureFixture[str], bare: Path) -> None:
    records = bare / "data" / "results" / "reproduce"
    write_records(records)
    assert cli.Reproduce(claims=("sphere-thickness", "dsm"), report=True)() == 0
    assert "\n2 claims: " in capsys.readouterr().out
    assert not (records / "verdicts.json").exists(), "a part is no report"
    assert cli.Reproduce(report=True)() == 0
    assert [row["name"] for row in json.loads((records / "verdicts.json").read_text())] == list(CLAIMS)
    assert sorted(path.name for path in bare.iterdir()) == ["data", "notebooks"], "nothing was run"


def test_only_what_decides_a_claim_is_run(bare: Path) -> None:
    assert cli.main(["reproduce", "trace-error", "--profile", "smoke", "--jobs", "1", "--no-progress"]) == 0
    records = bare / "runs" / "reproduce" / "smoke" / "records"
    assert [path.name for path in records.iterdir()] == ["trace"]


@pytest.mark.exhaustive
def test_every_claim_is_decided_from_scratch_at_profile_smoke(tmp_path: Path) -> None:
    folders = {"output": tmp_path / "records", "work": tmp_path / "work"}
    assert cli.Reproduce(profile="smoke", jobs=1, progress=False, **folders)() == 0
    assert [row["name"] for row in json.loads((tmp_path / "records" / "verdicts.json").read_text())] == list(CLAIMS)
