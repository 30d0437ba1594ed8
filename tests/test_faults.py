"""Whatever goes wrong ends in one clear line and a non-zero status, and no file that was there is touched.

Every command runs in a directory of its own, which is compared byte by byte before and after.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from isodiff.cli import main
from isodiff.diffusion import save_pipeline
from isodiff.files import data_directory, write_whole

WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
CPU = "--device cpu "
FINETUNE = f"finetune {CPU}--base model --dataset faces --num-steps 4 --batch-size 2 --checkpoint-every 1 --output out "
PRETRAIN = f"pretrain {CPU}--dataset digits --architecture digits16 --batch-size 2 --num-steps 2 --output out "
AUTOENCODER = f"train-autoencoder {CPU}--dataset faces --resolution 16 --batch-size 2 --num-steps 3 --output out "
EVALUATE = f"evaluate model {CPU}--output out --cache cache --no-progress "
SAMPLE = f"sample model {CPU}--number 4 --num-steps 2 --output new.png "
ATTRIBUTES = (
    f"train-attributes {CPU}--dataset faces --labels factors --num-images 20 --resolution 32 "
    "--architecture shufflenet_v2_x0_5 --num-epochs 1 --batch-size 8 --output out "
)
PHOTOGRAPHS = tuple(f"images/{index}_age{20 + index}_gender{index % 2}.png" for index in range(3))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with a model, a finished run, two records that do not compare, and images."""
    stock = tmp_path_factory.mktemp("stock")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}
    unet = UNet2DModel(sample_size=8, block_out_channels=(4, 8), norm_num_groups=4, **blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stock)
        save_pipeline(DDPMPipeline(unet=unet, scheduler=DDPMScheduler()), "model")
        assert main(shlex.split(FINETUNE + "--output done")) == 0
    (stock / "images").mkdir()
    for pixels, name in zip(np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3)), PHOTOGRAPHS, strict=True):
        Image.fromarray(pixels.astype(np.uint8)).save(stock / name)
    (stock / "records").mkdir()
    record = json.loads((data_directory() / "results" / "faces32-base.json").read_text())
    for seed in (0, 5):
        (stock / "records" / f"{seed}.json").write_text(json.dumps(record | {"seed": seed}))
    (stock / "text").write_text("not what anybody expects\n")
    return stock


def cut(*names: str) -> Callable[[], object]:
    """Cut files to half of their length."""
    return lambda: [os.truncate(name, os.path.getsize(name) // 2) for name in names]


def change_weights(dropped: str = " ", factor: float = 1.0) -> None:
    """Leave out tensors of the model by a part of their name, and multiply the others."""
    save_file({name: factor * tensor for name, tensor in load_file(WEIGHTS).items() if dropped not in name}, WEIGHTS)


POISON = partial(change_weights, factor=float("nan"))


class Fault(NamedTuple):
    """What is done, after what, and what must be said about it."""

    command: str
    words: str  # in the one line
    before: Callable[[], object] = lambda: None  # what happens to the directory first
    leaves: frozenset[str] = frozenset()  # files that the command may add
    environment: tuple[tuple[str, str], ...] = ()
    room: int | None = None  # bytes that a file can hold; a disk that is full ends a write in the same way


RTL = "--metrics mrtl -p num_rtl_pairs=4 -p rtl_points=3 -p rtl_steps=2"
CACHE, OUT = frozenset({"cache"}), frozenset({"out"})
FAULTS = [
    # the command line itself
    Fault("", "Expected one of {run,"),
    Fault("run --speed 3", "--speed"),
    Fault("finetune --dataset faces --output out", "--base"),
    # run
    Fault("run 77 --output out", "no notebook is called '77'; there are 01_"),
    Fault("run 03 --output text/out", "text is a file"),
    Fault("run 03", "ISODIFF_ROOT is", environment=(("ISODIFF_ROOT", "nowhere"),)),
    # pretrain
    Fault(PRETRAIN + "--architecture vit", "accepted: "),
    Fault(PRETRAIN + "--resolution 18", "multiple of 4, at least 8; got 18"),
    Fault(PRETRAIN + "--dataset folder:none", "none"),
    Fault(PRETRAIN + "--dataset hub:nobody/nothing", "nobody/nothing", environment=(("HF_HUB_OFFLINE", "1"),)),
    Fault(PRETRAIN + "--mixed-precision fp16", "needs a CUDA device"),
    Fault(PRETRAIN + "--device abacus", "device is 'abacus'"),
    Fault(PRETRAIN + "--output text", "text is a file"),
    # train-autoencoder
    Fault(AUTOENCODER + "--resolution 17", "resolution"),
    Fault(AUTOENCODER + "--output text", "text is a file"),
    # finetune
    Fault(FINETUNE + "--base none", "none"),
    Fault(FINETUNE, "model", cut("model/model_index.json")),
    Fault(FINETUNE, "model", cut(WEIGHTS)),
    Fault(FINETUNE, "conv_in.weight", partial(change_weights, dropped="conv_in")),
    Fault(FINETUNE, "Flux", lambda: Path("model/model_index.json").write_text('{"_class_name": "FluxPipeline"}')),
    Fault(FINETUNE + "--dataset digits", "(3, 8, 8)"),
    Fault(FINETUNE, "L_dsm = nan", POISON),
    Fault(FINETUNE + "--output done --p 0.7", "p = 0.5 there, 0.7 now"),
    Fault(FINETUNE, "could not be written", leaves=OUT, room=20_000),
    # evaluate
    Fault(EVALUATE + "--metrics mrtl,fib", "no metric is called fib; there are fid"),
    Fault(EVALUATE + "--metrics truth --dataset folder:images", "cannot be measured"),
    Fault(EVALUATE + "-p num_rtl_pairs=-3", "num_rtl_pairs is -3: input should be greater"),
    Fault(EVALUATE.replace("model", "none", 1), "none"),
    Fault(EVALUATE.replace("model", "model ./model", 1), "would write the same record"),
    Fault(EVALUATE + "--metrics fid --dataset folder:images", "3 images", leaves=CACHE),
    Fault(EVALUATE + "--metrics separability --attributes none-here", "no attribute classifier in"),
    Fault(EVALUATE + "--metrics mrtl", "finite", POISON),
    Fault(EVALUATE + "--metrics fid -p num_fid_images=40", "damaged", environment=(("ISODIFF_WEIGHTS", "text"),)),
    Fault(EVALUATE + "--metrics mrtl --output text", "text is a file"),
    Fault(EVALUATE + "--metrics mrtl -p num_rtl_pairs=4", "could not be written", leaves=CACHE, room=400),
    Fault(EVALUATE + RTL, "could not be written", leaves=CACHE | OUT, room=2000),
    # sample
    Fault(SAMPLE.replace("model", "none", 1), "no diffusers model at 'none'"),
    Fault(SAMPLE + "--number 0", "number must be at least 1; got 0"),
    Fault(SAMPLE + "--output new.gif", "output must end in .png or .jpg; got 'new.gif'"),
    Fault(SAMPLE + "--output images/0_age20_gender0.png", "is there already"),
    Fault(SAMPLE + "--output text/new.png", "text is a file"),
    Fault(SAMPLE, "the model must give finite images", POISON),
    Fault(SAMPLE, "new.png could not be written", room=300),
    # compare
    Fault("compare records/0.json none.json", "no record at none.json"),
    Fault("compare records/0.json", "is no record, or damaged", cut("records/0.json")),
    Fault("compare done/training.json", "is no record, or damaged"),
    Fault("compare records/0.json records/5.json", "do not compare: seed is 0 and 5"),
    # train-attributes
    Fault(ATTRIBUTES + "--labels ages", "labels is 'ages' of faces; accepted"),
    Fault(ATTRIBUTES + "--dataset folder:images --num-images 3 --labels celeba:none", "no such file: none"),
    Fault(ATTRIBUTES + "--num-images 3 --held-out 0.3", "for all 2 images"),
    Fault(ATTRIBUTES, "could not be written", leaves=OUT, room=20_000),
    Fault(ATTRIBUTES + "--output text", "text is a file"),
]


def complaint(text: str) -> str:
    """Return the one line that is said; progress bars apart, there is no other."""
    (line,) = [line for line in text.splitlines() if line.strip() and "%|" not in line]
    assert line.startswith("isodiff: ")
    return line


@pytest.fixture
def here(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stock, as working directory."""
    monkeypatch.chdir(shutil.copytree(stock, tmp_path / "here"))
    return tmp_path / "here"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.command.split(' ')[0]}: {fault.words}")
def test_a_fault_is_one_line_and_costs_nothing(
    fault: Fault, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault.before()
    for name, value in fault.environment:
        monkeypatch.setenv(name, value)
    before = {path: path.is_file() and path.read_bytes() for path in here.rglob("*")}
    with room(fault.room):
        assert main(shlex.split(fault.command)) == 2
    assert fault.words in complaint(capfd.readouterr().err)
    assert {path: path.is_file() and path.read_bytes() for path in before} == before
    added = [path.relative_to(here) for path in here.rglob("*") if path not in before]
    assert [path for path in added if path.parts[0] not in fault.leaves] == []
    assert [path for path in added if "partial" in path.name or "tmp" in path.name] == []


@contextmanager
def room(size: int | None) -> Iterator[None]:
    """Let no file grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_stays_as_it_was(here: Path) -> None:
    with room(1000), pytest.raises(OSError, match="text could not be written"):
        write_whole(Path("text"), "x" * 2000)
    assert Path("text").read_text() == "not what anybody expects\n"
    assert not list(here.glob(".*partial"))


LONG = "--metrics mrtl -p num_rtl_pairs=24 -p batch_size=3 -p rtl_points=3 -p rtl_steps=4"


@pytest.mark.parametrize(
    ("command", "sign", "status"),
    [(FINETUNE + "--num-steps 12", "out/checkpoint.pt", 143), (EVALUATE + LONG, "cache/*/*.npz", -signal.SIGTERM)],
)
def test_sigterm_in_mid_run_costs_nothing_that_was_finished(command: str, sign: str, status: int, here: Path) -> None:
    """A training saves first and says so; of a measurement every finished file is kept."""
    environment, arguments = os.environ | {"OMP_NUM_THREADS": "1"}, [sys.executable, "-m", "isodiff", *command.split()]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not list(here.glob(sign)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == status  # 143 too in a shell, for a process that a signal ends
    assert status < 0 or complaint(error).startswith("isodiff: stopped by SIGTERM")
    assert not (here / "out" / "model_index.json").exists()
    kept = {path: path.read_bytes() for path in here.glob("cache/*/*.npz")}
    assert main(command.split()) == 0
    assert {path: path.read_bytes() for path in kept} == kept
    if status > 0:
        assert len(json.loads(Path("out/training.json").read_text())["curves"]["step"]) == 12
