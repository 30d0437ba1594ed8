"""Whatever goes wrong ends in one clear line and a non-zero status, and no file that was there is touched."""

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

import pytest
from safetensors.torch import load_file, save_file

from isodiff.cli import main
from isodiff.diffusion import save_pipeline
from isodiff.files import data_directory, write_whole

from .datasets.pictures import noise
from .diffusion.tiny import tiny_ddpm

WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
CPU = "--device cpu "
FINETUNE = f"finetune {CPU}--base model --dataset faces --num-steps 4 --batch-size 2 --checkpoint-every 1 --output out "
PRETRAIN = f"pretrain {CPU}--dataset digits --architecture digits16 --batch-size 2 --num-steps 2 --output out "
EVALUATE = f"evaluate model {CPU}--output out --cache cache --no-progress "
ATTRIBUTES = f"train-attributes {CPU}--dataset faces --labels factors --num-images 3 --held-out 0.3 --output out"
SAMPLE = f"sample model {CPU}--number 4 --num-steps 2 --output new.png "


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stock = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stock)
        save_pipeline(tiny_ddpm(), "model")
        assert main(shlex.split(FINETUNE + "--output done")) == 0
    noise(0).save(stock / "image.png")
    record = json.loads((data_directory() / "results" / "faces32-base.json").read_text())
    for seed in (0, 5):
        (stock / f"{seed}.json").write_text(json.dumps(record | {"seed": seed}))
    (stock / "text").write_text("not what anybody expects\n")
    return stock


@pytest.fixture
def here(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stock, as working directory."""
    monkeypatch.chdir(shutil.copytree(stock, tmp_path / "here"))
    return tmp_path / "here"


@contextmanager
def room(size: int | None) -> Iterator[None]:
    """Let no file grow beyond a number of bytes; a disk that is full ends a write in the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def change_weights(dropped: str = " ", factor: float = 1.0) -> None:
    """Leave out tensors of the model by a part of their name, and multiply the others."""
    save_file({name: factor * tensor for name, tensor in load_file(WEIGHTS).items() if dropped not in name}, WEIGHTS)


POISON = partial(change_weights, factor=float("nan"))


class Fault(NamedTuple):
    """What is done, after what, and what must be said about it."""

    command: str
    words: str  # in the one line
    before: Callable[[], object] = lambda: None  # what happens to the directory first
    leaves: str = ""  # what the command may add
    variable: tuple[str, str] = ("ISODIFF_OTHER", "")  # of the environment
    room: int | None = None  # bytes that a file can hold


RTL = "--metrics mrtl -p num_rtl_pairs=4 -p rtl_points=3 -p rtl_steps=2"
FAULTS = [
    Fault("", "Expected one of {run,"),
    Fault("run 03 --output text/out", "text is a file"),
    Fault("run 03 --output model", "output 'model' holds model_index.json"),
    Fault("reproduce encoder --output model", "output 'model' holds model_index.json"),
    Fault("reproduce dsm table9 --list", "no claim is called 'table9'; there are table1-ppl"),
    Fault("reproduce dsm --profile tpu --report", "profile is 'tpu'; reproduce accepts smoke, cpu, gpu"),
    Fault("reproduce trace-error --profile smoke --jobs 0 --output out", "jobs must be at least 1; got 0"),
    Fault("reproduce --report --output out", "is made by: isodiff reproduce "),
    Fault("reproduce table1-ppl --photographs text --output out", "none of these claims is about photographs"),
    Fault("run 03", "ISODIFF_ROOT is", variable=("ISODIFF_ROOT", "nowhere")),
    Fault(PRETRAIN + "--architecture vit", "accepted: "),
    Fault(PRETRAIN + "--resolution 18", "multiple of 4, at least 8; got 18"),
    Fault(PRETRAIN + "--dataset folder:none", "none"),
    Fault(PRETRAIN + "--mixed-precision fp16", "needs a CUDA device"),
    Fault(PRETRAIN + "--device abacus", "device is 'abacus'"),
    Fault(FINETUNE, "model", lambda: os.truncate(WEIGHTS, 99)),
    Fault(FINETUNE, "conv_in.weight", partial(change_weights, dropped="conv_in")),
    Fault(FINETUNE, "Flux", lambda: Path("model/model_index.json").write_text('{"_class_name": "FluxPipeline"}')),
    Fault(FINETUNE + "--dataset digits", "(3, 8, 8)"),
    Fault(FINETUNE + "--output done --p 0.7", "p = 0.5 there, 0.7 now"),
    Fault(FINETUNE, "could not be written", leaves="out", room=20_000),
    Fault(EVALUATE + "--metrics mrtl,fib", "no metric is called fib; there are fid"),
    Fault(EVALUATE + "-p num_rtl_pairs=-3", "num_rtl_pairs is -3: input should be greater"),
    Fault(EVALUATE.replace("model", "model ./model", 1), "would write the same record"),
    Fault(EVALUATE + "--metrics separability --attributes none-here", "no attribute classifier in"),
    Fault(EVALUATE + "--metrics mrtl", "finite", POISON),
    Fault(EVALUATE + "--metrics fid -p num_fid_images=40", "damaged", variable=("ISODIFF_WEIGHTS", "text")),
    Fault(EVALUATE + RTL, "model.json is no record", partial(write_whole, Path("out/model.json"), "{}")),
    Fault(SAMPLE, "is a pointer of Git LFS", partial(write_whole, Path(WEIGHTS), "version https://git-lfs.github.com")),
    Fault(EVALUATE + RTL, "could not be written", leaves="cache out", room=2000),
    Fault(SAMPLE.replace("model", "none", 1), "no diffusers model at 'none'"),
    Fault(SAMPLE + "--number 0", "number must be at least 1; got 0"),
    Fault(SAMPLE + "--output new.gif", "output must end in .png or .jpg; got 'new.gif'"),
    Fault(SAMPLE + "--output image.png", "is there already"),
    Fault(SAMPLE, "the model must give finite images", POISON),
    Fault(SAMPLE, "new.png could not be written", room=300),
    Fault("compare 0.json none.json", "no record at none.json"),
    Fault("compare 0.json", "is no record, or damaged", lambda: os.truncate("0.json", 99)),
    Fault("compare 0.json 5.json", "do not compare: seed is 0 and 5"),
    Fault(ATTRIBUTES, "for all 2 images"),
]


def complaint(text: str) -> str:
    """Return the one line that is said; progress bars apart, there is no other."""
    (line,) = [line for line in text.splitlines() if line.strip() and "%|" not in line]
    assert line.startswith("isodiff: ")
    return line


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.command.split(' ')[0]}: {fault.words}")
def test_a_fault_is_one_line_and_costs_nothing(
    fault: Fault, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault.before()
    monkeypatch.setenv(*fault.variable)
    before = {path: path.is_file() and path.read_bytes() for path in here.rglob("*")}
    with room(fault.room):
        assert main(shlex.split(fault.command)) == 2
    assert fault.words in complaint(capfd.readouterr().err)
    assert {path: path.is_file() and path.read_bytes() for path in before} == before
    added = [path.relative_to(here) for path in here.rglob("*") if path not in before]
    assert {path.parts[0] for path in added} <= set(fault.leaves.split())
    assert [path for path in added if "partial" in path.name or "tmp" in path.name] == []


def test_a_file_that_cannot_be_written_stays_as_it_was(here: Path) -> None:
    with room(1000), pytest.raises(OSError, match="text could not be written"):
        write_whole(Path("text"), "x" * 2000)
    assert Path("text").read_text() == "not what anybody expects\n"
    assert not list(here.glob(".*partial"))


def test_a_training_saves_at_sigterm_and_goes_on(here: Path) -> None:
    command = FINETUNE + "--num-steps 12"
    environment, arguments = os.environ | {"OMP_NUM_THREADS": "1"}, [sys.executable, "-m", "isodiff", *command.split()]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)
    while not (here / "out/checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 143  # as in a shell, of a process that a signal ends
    assert complaint(error).startswith("isodiff: stopped by SIGTERM")
    assert not (here / "out" / "model_index.json").exists()
    assert main(command.split()) == 0
    assert len(json.loads(Path("out/training.json").read_text())["curves"]["step"]) == 12
