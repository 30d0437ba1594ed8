"""Models in and out: the published ones by architecture, from a cache made on the spot, and offline."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, KarrasVePipeline, KarrasVeScheduler, LDMPipeline

from isodiff.diffusion import PUBLISHED, bottleneck_shape, image_shape, latent_shape, models
from isodiff.diffusion.models import build_pipeline, load_pipeline, save_pipeline

from .tiny import tiny_ddpm, tiny_ldm, tiny_unet

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


def test_all_understood_kinds_of_pipeline_come_back_as_they_were(tmp_path: Path) -> None:
    ddpm = tiny_ddpm()
    for pipeline in (ddpm, DDIMPipeline(unet=ddpm.unet, scheduler=ddpm.scheduler), tiny_ldm("kl"), tiny_ldm("vq")):
        save_pipeline(pipeline, tmp_path / "m")
        loaded = load_pipeline(tmp_path / "m")
        assert type(loaded) is type(pipeline)
        for key, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                torch.testing.assert_close(getattr(loaded, key).state_dict(), part.state_dict(), rtol=0, atol=0)
        assert "_name_or_path" not in (tmp_path / "m" / "unet" / "config.json").read_text()


def test_what_is_no_pipeline_of_ours_is_refused_by_name(tmp_path: Path) -> None:
    KarrasVePipeline(unet=tiny_unet(), scheduler=KarrasVeScheduler()).save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="holds a KarrasVePipeline; accepted are DDPMPipeline, DDIMPipeline"):
        load_pipeline(tmp_path / "m")
    save_pipeline(tiny_ddpm(), tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot load the model in '.*cut': "):
        load_pipeline(tmp_path / "cut")


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
    assert f"HF_HUB_OFFLINE is set; where there is a network: hf download {name} --revision {'0' * 40}" in line


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
