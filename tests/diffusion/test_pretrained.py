"""Models in and out: the published ones by architecture, from a cache made on the spot, and offline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, KarrasVePipeline, KarrasVeScheduler, LDMPipeline

from isodiff.diffusion import pretrained
from isodiff.diffusion.hspace import bottleneck_shape
from isodiff.diffusion.latent import image_shape, latent_shape
from isodiff.diffusion.pretrained import build_pipeline, build_unet, load_pipeline, save_pipeline
from isodiff.diffusion.published import ARCHITECTURES, PUBLISHED, PublishedModel
from isodiff.metrics.generator import model_digest

from .tiny import tiny_ddpm, tiny_ldm, tiny_unet

PARAMETERS = {"ddpm-32": 35_746_307, "ddpm-256": 113_673_219, "ldm-256": 274_056_163}  # of the published weights
READ = "import sys; from isodiff.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module", params=sorted(PARAMETERS))
def architecture(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    with torch.device("meta"):  # shapes without numbers: a quarter of a billion weights take no memory
        return request.param, build_unet(request.param)


def test_published_architectures_have_the_published_number_of_weights(architecture: tuple) -> None:
    name, unet = architecture
    assert sum(p.numel() for p in unet.parameters()) == PARAMETERS[name]


def test_the_table_tells_the_shapes_of_its_architectures(architecture: tuple) -> None:
    name, unet = architecture
    models = [model for model in PUBLISHED.values() if model.architecture == name]
    assert models
    for model in models:
        assert latent_shape(unet) == model.latent
        assert bottleneck_shape(unet) == model.h
        assert model.radius == pytest.approx(torch.tensor(model.latent).prod().sqrt().item(), rel=1e-4)


def test_published_names_pins_and_sizes_are_well_formed() -> None:
    for name, model in PUBLISHED.items():
        assert name.count("/") == 1
        assert model.revision is None or (len(model.revision) == 40 and set(model.revision) <= set("0123456789abcdef"))
        assert model.architecture in ARCHITECTURES
        assert model.resolution in (32, 256)


def test_the_published_latent_model_comes_with_its_autoencoder() -> None:
    with torch.device("meta"):
        pipeline = build_pipeline("ldm-256")
    assert isinstance(pipeline, LDMPipeline)
    assert image_shape(pipeline) == (3, 256, 256)
    assert pipeline.vqvae.config.scaling_factor == 1.0


def test_all_understood_kinds_of_pipeline_come_back_as_they_were(tmp_path: Path) -> None:
    ddpm = tiny_ddpm()
    ddim = DDIMPipeline(unet=ddpm.unet, scheduler=ddpm.scheduler)
    for pipeline in (ddpm, ddim, tiny_ldm("kl"), tiny_ldm("vq")):
        save_pipeline(pipeline, tmp_path / "m")
        loaded = load_pipeline(tmp_path / "m")
        assert type(loaded) is type(pipeline)
        assert model_digest(loaded) == model_digest(pipeline)


def test_another_kind_of_pipeline_is_refused_by_name(tmp_path: Path) -> None:
    KarrasVePipeline(unet=tiny_unet(), scheduler=KarrasVeScheduler()).save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="'m' holds a KarrasVePipeline; accepted are DDPMPipeline, DDIMPipeline"):
        load_pipeline(tmp_path / "m")


def _cache(home: Path, name: str, revision: str, pipeline: DDPMPipeline) -> None:
    """Lay a model out as a download leaves it in the hub's cache."""
    pipeline.save_pretrained(home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / revision)


def _run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as the hub's client reads its environment once."""
    return subprocess.run(
        [sys.executable, "-c", READ, *arguments],
        env={**os.environ, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_cached_model_is_found_offline_at_its_revision_and_at_no_other(tmp_path: Path) -> None:
    name = "google/ddpm-cifar10-32"
    _cache(tmp_path / "home", name, PUBLISHED[name].revision, tiny_ddpm())
    tune = ["finetune", "--dataset", "faces", "--num-steps", "1", "--batch-size", "1", "--device", "cpu"]
    found = _run(tmp_path / "home", *tune, "--base", name, "--output", str(tmp_path / "m"), HF_HUB_OFFLINE="1")
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "m" / "model_index.json").is_file()

    other = [*tune, "--base", f"{name}@{'0' * 40}", "--output", str(tmp_path / "n")]
    missing = _run(tmp_path / "home", *other, HF_HUB_OFFLINE="1")
    assert missing.returncode == 2
    (line,) = missing.stderr.strip().splitlines()
    assert f"hf download {name} --revision {'0' * 40}" in line
    assert not (tmp_path / "n").exists()


def test_the_scale_missing_from_the_published_latent_model_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pipeline(tiny_ldm("vq"), tmp_path / "m")
    monkeypatch.setattr(pretrained, "_fetch", lambda name, revision: tmp_path / "m")
    assert load_pipeline("CompVis/ldm-celebahq-256").vqvae.config.scaling_factor == 1.0
    assert load_pipeline("hub:somebody/model").vqvae.config.scaling_factor == 0.7


def test_the_revision_asked_for_is_the_revision_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pipeline(tiny_ddpm(), tmp_path / "m")
    asked: list[tuple[str, str | None]] = []

    def fetch(name: str, revision: str | None) -> Path:
        asked.append((name, revision))
        return tmp_path / "m"

    monkeypatch.setattr(pretrained, "_fetch", fetch)
    load_pipeline("google/ddpm-cifar10-32")
    load_pipeline("google/ddpm-cifar10-32@main")
    load_pipeline("hub:a/b@v1")
    load_pipeline("hub:a/b", revision="v2")
    load_pipeline("google/ddpm-celebahq-256")
    pinned = PUBLISHED["google/ddpm-cifar10-32"].revision
    expected = [("google/ddpm-cifar10-32", pinned), ("google/ddpm-cifar10-32", "main"), ("a/b", "v1"), ("a/b", "v2")]
    assert asked == [*expected, ("google/ddpm-celebahq-256", None)]


def test_unknown_and_unreachable_names_fail_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"faces32/base.*google/ddpm-celebahq-256.*or hub:OWNER/NAME"):
        load_pipeline("no/such")
    with pytest.raises(FileNotFoundError, match="no name of a model on the hub; expected OWNER/NAME"):
        load_pipeline("hub:a b")
    began = time.monotonic()
    with pytest.raises(
        (ConnectionError, FileNotFoundError), match=r"hf download isodiff-no-such/x|the hub has no model"
    ):
        load_pipeline("hub:isodiff-no-such/x")
    assert time.monotonic() - began < 60  # one question, not a series of attempts


def test_the_published_model_is_a_frozen_fact() -> None:
    with pytest.raises(AttributeError):
        PUBLISHED["google/ddpm-cifar10-32"].resolution = 64
    assert PublishedModel("faces", 8, (3, 8, 8), (8, 4, 4), "faces32").revision is None
