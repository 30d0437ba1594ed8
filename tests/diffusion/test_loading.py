"""Models as people have them on their disks: opened with the same weights, or refused with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from isodiff.diffusion import load_pipeline, model_name

from .tiny import tiny_ddpm, tiny_ldm, tiny_unet


def saved(place: Path, unet: UNet2DModel | None = None, scheduler: object | None = None, **how: object) -> Path:
    torch.manual_seed(0)
    DDPMPipeline(unet=unet or tiny_unet(), scheduler=scheduler or DDPMScheduler()).save_pretrained(place, **how)
    return place


def unet_and(place: Path, *others: str) -> Path:
    for name in ("unet", *others):
        torch.manual_seed(0)
        tiny_unet().save_pretrained(place / name)
    (place / "optimizer.bin").write_bytes(b"optimizer")
    return place


KEPT: dict[str, Callable[[Path], Path]] = {
    "pickles": lambda p: saved(p, safe_serialization=False),
    "a variant": lambda p: saved(p, variant="fp16"),
    "a variant in pickles": lambda p: saved(p, variant="fp16", safe_serialization=False),
    "shards": lambda p: saved(p, max_shard_size="5KB"),
    "shards of a variant": lambda p: saved(p, max_shard_size="5KB", variant="fp16"),
    "the unet of a pipeline": lambda p: saved(p) / "unet",
    "a unet without its pipeline": lambda p: unet_and(p),
    "a training checkpoint": lambda p: unet_and(p / "checkpoint-500", "unet_ema"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KEPT)
def test_weights_are_those_that_were_saved(kind: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(KEPT[kind](tmp_path / "model"))
    torch.testing.assert_close(pipeline.unet.state_dict(), tiny_ddpm().unet.state_dict(), rtol=0, atol=0)


def test_a_unet_alone_gets_the_scheduler_given_or_stored_or_a_default_that_is_said(tmp_path: Path) -> None:
    place = unet_and(tmp_path / "model")
    with pytest.warns(UserWarning, match="DDPM's default"):
        assert load_pipeline(place).scheduler.config.num_train_timesteps == 1000
    assert load_pipeline(place, scheduler=DDIMScheduler(num_train_timesteps=70)).scheduler.config.beta_end == 0.02
    DDIMScheduler(num_train_timesteps=50).save_pretrained(place / "scheduler")
    for source in (place, place / "unet"):
        assert load_pipeline(source).scheduler.config.num_train_timesteps == 50


def test_half_weights_are_opened_in_float32(tmp_path: Path) -> None:
    unet = load_pipeline(saved(tmp_path / "half", tiny_unet().half(), variant="fp16")).unet
    assert {p.dtype for p in unet.parameters()} == {torch.float32}


class Bomb:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_that_is_more_than_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = saved(tmp_path / "model", safe_serialization=False)
    torch.save({"conv_in.weight": Bomb()}, place / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load"):
        load_pipeline(place)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("stated", "expected"), [(None, 1.0), (0.5, 0.5)])
def test_latents_of_a_vq_model_are_scaled_by_what_its_file_says(
    stated: float | None, expected: float, tmp_path: Path
) -> None:
    place = tmp_path / "any name"
    tiny_ldm("vq").save_pretrained(place)
    file = place / "vqvae/config.json"
    config = {k: v for k, v in json.loads(file.read_text()).items() if k != "scaling_factor"}
    file.write_text(json.dumps(config | ({} if stated is None else {"scaling_factor": stated})))
    assert load_pipeline(place).vqvae.config.scaling_factor == expected


def weights_alone(place: Path) -> Path:
    place.mkdir()
    (place / "pytorch_model.bin").write_bytes(b"weights")
    return place


def without_weights(place: Path) -> Path:
    (saved(place) / "unet/diffusion_pytorch_model.safetensors").unlink()
    return place


def two_variants(place: Path) -> Path:
    saved(place, variant="fp16")
    weights = place / "unet/diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.ema.safetensors"))
    return place


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "weights without a configuration": (weights_alone, r"pytorch_model\.bin.*save_pretrained"),
    "one file": (lambda p: weights_alone(p) / "pytorch_model.bin", r"one file.*from_single_file.*save_pretrained"),
    "no weights": (without_weights, r"no weights"),
    "two variants": (two_variants, r"ema, fp16"),
    "five channels of three": (lambda p: saved(p, tiny_unet(out_channels=5)), r"5 channels of 3"),
    "noise of another kind": (lambda p: saved(p, scheduler=diffusers.EDMEulerScheduler()), r"EDMEulerScheduler"),
    "dynamic thresholds": (lambda p: saved(p, scheduler=DDPMScheduler(thresholding=True)), r"thresholding"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_opened_is_refused_with_what_would_be(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as caught:
        load_pipeline(make(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_one_model_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "model")
    assert {model_name(name) for name in ("model", "./model", "model/", str(tmp_path / "model"))} == {
        str((tmp_path / "model").resolve())
    }
    assert model_name("faces32/base") == "faces32/base"
    assert model_name("hub:a/b@main") == model_name("a/b@main")
