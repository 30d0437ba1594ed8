"""Models, published or on disks, are opened with the same weights, or refused with what to do."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, LDMPipeline, UNet2DModel

from isodiff.diffusion import PUBLISHED, bottleneck_shape, image_shape, latent_shape, model_name, models
from isodiff.diffusion.models import build_pipeline, load_pipeline, save_pipeline

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


def cut(place: Path) -> Path:
    weights = saved(place) / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return place


def karras(place: Path) -> Path:
    diffusers.KarrasVePipeline(unet=tiny_unet(), scheduler=diffusers.KarrasVeScheduler()).save_pretrained(place)
    return place


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "weights without a configuration": (weights_alone, r"pytorch_model\.bin.*save_pretrained"),
    "one file": (lambda p: weights_alone(p) / "pytorch_model.bin", r"one file.*from_single_file.*save_pretrained"),
    "no weights": (without_weights, r"no weights"),
    "weights cut off": (cut, r"cannot load the model in '.*model': "),
    "another pipeline": (karras, "holds a KarrasVePipeline; accepted are DDPMPipeline, DDIMPipeline"),
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


PARAMETERS = {"ddpm-32": 35_746_307, "ddpm-256": 113_673_219, "ldm-256": 274_056_163}  # of the published weights


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_architectures_have_the_published_weights_and_shapes(name: str) -> None:
    with torch.device("meta"):  # shapes without numbers: a quarter of a billion weights take no memory
        pipeline = build_pipeline(name)
    unet, models = pipeline.unet, [model for model in PUBLISHED.values() if model.architecture == name]
    assert sum(p.numel() for p in unet.parameters()) == PARAMETERS[name]
    assert {(model.latent, model.h) for model in models} == {(latent_shape(unet), bottleneck_shape(unet))}
    assert all(re.fullmatch("[0-9a-f]{40}", model.revision) for model in models if model.revision)
    if name == "ldm-256":
        assert isinstance(pipeline, LDMPipeline)
        assert (image_shape(pipeline), pipeline.vqvae.config.scaling_factor) == ((3, 256, 256), 1.0)


def test_all_understood_kinds_of_pipeline_come_back_as_they_were_and_as_diffusers_reads_them(tmp_path: Path) -> None:
    ddpm = tiny_ddpm()
    for pipeline in (ddpm, DDIMPipeline(unet=ddpm.unet, scheduler=ddpm.scheduler), tiny_ldm("kl"), tiny_ldm("vq")):
        save_pipeline(pipeline, tmp_path / "m")
        loaded, stock = load_pipeline(tmp_path / "m"), type(pipeline).from_pretrained(tmp_path / "m")
        assert type(loaded) is type(pipeline)
        for key, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                torch.testing.assert_close(getattr(loaded, key).state_dict(), part.state_dict(), rtol=0, atol=0)
                torch.testing.assert_close(getattr(stock, key).state_dict(), part.state_dict(), rtol=0, atol=0)
        assert "_name_or_path" not in (tmp_path / "m" / "unet" / "config.json").read_text()


def test_half_weights_are_read_in_float32_and_what_exceeds_their_range_is_refused(tmp_path: Path) -> None:
    pipeline = tiny_ldm()
    save_pipeline(pipeline, tmp_path / "m", half=True)
    loaded = load_pipeline(tmp_path / "m")
    for part in ("unet", "vqvae"):
        rounded = {key: value.half().float() for key, value in getattr(pipeline, part).state_dict().items()}
        torch.testing.assert_close(getattr(loaded, part).state_dict(), rounded, rtol=0, atol=0)
    pipeline.unet.conv_in.bias.data[0] = 1e6
    with pytest.raises(ValueError, match=r"unet has weights beyond the range of float16; store it in full"):
        save_pipeline(pipeline, tmp_path / "n", half=True)
    assert not (tmp_path / "n").exists()


def test_a_cached_model_is_found_offline_at_its_revision_and_at_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, pipeline = "google/ddpm-cifar10-32", tiny_ddpm()
    folder = f"models--{name.replace('/', '--')}/snapshots/{PUBLISHED[name].revision}"
    pipeline.save_pretrained(tmp_path / folder)  # as a download leaves it
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = load_pipeline(name)
    torch.testing.assert_close(found.unet.state_dict(), pipeline.unet.state_dict(), rtol=0, atol=0)
    with pytest.raises(ConnectionError) as missing:
        load_pipeline(f"{name}@{'0' * 40}")
    (line,) = str(missing.value).splitlines()
    assert f"(OfflineModeIsEnabled); where there is a network: hf download {name} --revision {'0' * 40}" in line


def test_the_revision_asked_for_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pipeline(tiny_ldm("vq"), tmp_path / "m")
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(models, "_fetch", lambda *name_revision: asked.append(name_revision) or tmp_path / "m")
    cifar, latent = "google/ddpm-cifar10-32", "CompVis/ldm-celebahq-256"
    for name in (cifar, f"{cifar}@main", "hub:a/b@v1", "google/ddpm-celebahq-256", latent):
        load_pipeline(name)
    pinned = [(name, PUBLISHED[name].revision) for name in (cifar, latent)]
    assert asked == [pinned[0], (cifar, "main"), ("a/b", "v1"), ("google/ddpm-celebahq-256", None), pinned[1]]


def test_unknown_and_unreachable_names_fail_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"faces32/base.*google/ddpm-celebahq-256.*or hub:OWNER/NAME"):
        load_pipeline("no/such")
    with pytest.raises(FileNotFoundError, match="no name of a model on the hub; expected OWNER/NAME"):
        load_pipeline("hub:a b")
    began = time.monotonic()
    message = r"hf download isodiff-no-such/x|the hub has no model"
    with pytest.raises((ConnectionError, FileNotFoundError), match=message):
        load_pipeline("hub:isodiff-no-such/x")
    assert time.monotonic() - began < 60  # one question, not a series of attempts
