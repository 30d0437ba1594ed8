"""The commands on models that others made: trained, sampled and measured as they are, or refused before any work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers import DPMSolverMultistepScheduler as DPM
from diffusers import PNDMScheduler as PNDM
from diffusers import UniPCMultistepScheduler as UniPC
from PIL import Image

from isodiff.cli import main
from isodiff.diffusion import load_pipeline

from .datasets.pictures import noise
from .diffusion.tiny import BLOCKS

FEW = ["--num-steps", "2", "--batch-size", "4", "--p", "0", "--lambda-iso", "0.1", "--device", "cpu"]
ATTENTION = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
ATTENTION |= {"attention_head_dim": 4}
pytestmark = pytest.mark.filterwarnings("ignore:.*leading spacing", "ignore:.*stores no scheduler")


def model(place: Path, scheduler: object | None = None, *, size: object = 16, channels: int = 3, out: int = 0) -> str:
    torch.manual_seed(0)
    unet = UNet2DModel(size, channels, out or channels, **BLOCKS | ATTENTION)
    DDPMPipeline(unet=unet, scheduler=scheduler or DDPMScheduler()).save_pretrained(place)
    return str(place)


def finetune(base: str, output: Path | str, dataset: str = "faces", *more: str) -> int:
    return main(["finetune", "--base", base, "--dataset", dataset, "--output", str(output), *FEW, *more])


def content(folder: str | Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", [DPM, UniPC, PNDM])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_training_does_not_depend_on_the_class_of_the_scheduler(kind: type, predicts: str, tmp_path: Path) -> None:
    weights = []
    for name, scheduler in (("ddpm", DDPMScheduler), ("other", kind)):
        base = model(tmp_path / name, scheduler(prediction_type=predicts))
        assert finetune(base, tmp_path / f"{name} trained") == 0
        weights.append(load_pipeline(tmp_path / f"{name} trained").unet.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert type(load_pipeline(tmp_path / "other trained").scheduler) is kind


SHAPES = {
    "wide": {"size": (16, 32)},
    "grey": {"channels": 1},
    "of 100 steps": {"scheduler": DDPMScheduler(100)},
    "of 4000 steps": {"scheduler": DDPMScheduler(4000)},
    "with a learned variance": {"out": 6},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_model_is_used_in_its_own_shape(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photographs").mkdir()
    for number in range(6):
        noise(number, size=40).crop((0, 0, 40, 20)).save(tmp_path / "photographs" / f"{number}.png")
    base, dataset = model(tmp_path / "base", **SHAPES[kind]), f"folder:{tmp_path}/photographs"
    assert finetune(base, tmp_path / "trained", dataset) == 0
    before, after = (load_pipeline(place).unet for place in (base, tmp_path / "trained"))
    assert after.config.sample_size == before.config.sample_size
    if kind == "with a learned variance":  # nothing asks anything of the variance
        torch.testing.assert_close(after.conv_out.weight[3:], before.conv_out.weight[3:], rtol=0, atol=0)
    picture = str(tmp_path / "a.png")
    assert main(["sample", base, "--number", "2", "--columns", "2", "--num-steps", "2", "--output", picture]) == 0
    height, width = np.broadcast_to(before.config.sample_size, 2)
    assert Image.open(picture).size == (2 * width + 3, height + 2)
    places = f"--output {tmp_path}/out --cache {tmp_path}/cache -p num_fid_images=40 -p fid_steps=2 --no-progress -p"
    evaluate = ["evaluate", base, "--dataset", dataset, "--metrics", "anisotropy", *places.split()]
    capsys.readouterr()
    assert main([*evaluate, "num_anisotropy=20"]) == 2  # six photographs are too few
    assert "6 images and 20 are asked for" in capsys.readouterr().err
    assert main([*evaluate, "num_anisotropy=4", "-p", "num_anisotropy=4"]) == 2  # given twice
    assert main([*evaluate, "num_anisotropy=6"]) == 0
    horizon, printed = load_pipeline(base).scheduler.config.num_train_timesteps, capsys.readouterr().out
    assert all(f"anisotropy_t{share * horizon // 10}" in printed for share in (2, 6, 8))


def test_nothing_that_is_there_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, other, notes = model(tmp_path / "base"), model(tmp_path / "other"), tmp_path / "notes"
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    kept = content(tmp_path)
    refused = {base: "base itself", f"{base}/../base/": "base itself", f"{base}/unet": "lies in it"}
    refused[other] = "holds model_index.json, scheduler, unet, which no run of isodiff wrote"
    for output, message in (refused | {notes: "holds notes.txt"}).items():
        assert finetune(base, output) == 2
        assert message in capsys.readouterr().err
        assert content(tmp_path) == kept
    assert finetune(base, base, "faces", "--overwrite") == 2
    assert finetune(base, notes, "faces", "--overwrite") == 0
    assert (notes / "notes.txt").read_text() == "mine"


def test_the_output_may_be_here_and_the_base_be_spelled_anyhow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "base")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert finetune("../base", ".") == 0
    trained = content(".")
    monkeypatch.chdir(tmp_path)
    for base in ("base", "./base/", str(tmp_path / "base")):
        assert finetune(base, "mine") == 0  # done already
    assert content("mine") == trained
