"""What the trainings of the house share: a model under way, in steps of one batch over several processes.

Everything random is drawn for the global batch from (seed, step, purpose), on the CPU, by every process alike; each
then takes its own rows. So an interrupted run resumes exactly, two runs that differ in one setting see the same images,
steps and noise, and several processes train as one, up to rounding.
"""

import math
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, Dataset

from isodiff.diffusion.config import TrainingConfig
from isodiff.diffusion.run_folder import Checkpoint, TrainingInterrupted
from isodiff.files import resolve_device

CPU_INFO = Path("/proc/cpuinfo")
_PURPOSES = ("epoch", "flip", "dsm", "isometry", "layers", "posterior")  # new ones at the end: the position counts


def derived_seed(*entropy: int) -> int:
    """Return a seed whose random numbers are independent of those of any other sequence of numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the `with` block; the caller's state returns after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class TrainingStep:
    """A step as one of the processes sees it: what a loss needs besides its images."""

    number: int  # steps done before it
    seed: int  # of the run
    accelerator: Accelerator

    def generator(self, purpose: str) -> torch.Generator:
        """Return this step's random numbers for a purpose, the same on every process."""
        return torch.Generator().manual_seed(derived_seed(self.seed, self.number, _PURPOSES.index(purpose)))

    def rows(self, drawn: Tensor) -> Tensor:
        """Take this process's rows of what was drawn for the global batch."""
        return drawn[self.accelerator.process_index :: self.accelerator.num_processes].to(self.accelerator.device)

    def layers(self, part: int) -> AbstractContextManager[None]:
        """Make what layers draw, such as dropout, a function of (seed, step, process, pass)."""
        entropy = self.seed, self.number, _PURPOSES.index("layers"), self.accelerator.process_index, part
        return seeded(derived_seed(*entropy), self.accelerator.device)

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over the processes, to the same bits on each."""
        return self.accelerator.gather(values[None]).mean(0)


def global_batches(
    num_images: int, config: TrainingConfig, start: int, accelerator: Accelerator, sequential: bool = False
) -> Iterator[list[int]]:
    """Yield this process's rows of each batch from step `start` on: each image once an epoch, in the seed's order.

    A sequential dataset is a stream that shuffles itself: its positions come as they are and go on over the epochs.
    """

    def shuffled(epoch: int) -> list[int]:
        generator = TrainingStep(epoch, config.seed, accelerator).generator("epoch")
        return torch.randperm(num_images, generator=generator).tolist()

    epoch, done = divmod(first := start * config.batch_size, num_images)
    epochs = islice(chain.from_iterable(map(shuffled, count(epoch))), done, None)
    rows = count(first) if sequential else epochs
    for _ in range(start, config.num_steps):
        yield list(islice(rows, config.batch_size))[accelerator.process_index :: accelerator.num_processes]


class RunOptions(TypedDict, total=False):
    """What a caller may ask of any training."""

    accelerator: Accelerator  # device, processes, precision; by default those of the machine
    checkpoint: str | Path  # file from which the run goes on, bit for bit on a CPU with as many processes
    provenance: Mapping[str, Any]  # facts such as the dataset, which must be the same when it goes on
    stop: Callable[[], int]  # asked after each step for the number of a signal, which ends all processes; 0 to go on
    log: list[dict[str, Any]]  # receives what the record plots of each step, of those before an interruption too


class Training:
    """A model, its optimiser, moving average and checkpoint, written where due once the caller has seen a step."""

    def __init__(
        self, model: Module, images: Dataset, shape: tuple[int, ...], config: TrainingConfig, options: RunOptions
    ) -> None:
        accelerator = options.get("accelerator") or Accelerator(mixed_precision=config.mixed_precision)
        if (found := tuple(images[0].shape) if len(images) else "no image") != shape:
            raise ValueError(f"the images have shape {found}; this model needs {shape} (channels, height, width)")
        processes, passes = accelerator.num_processes, config.gradient_accumulation_steps
        if config.batch_size % (processes * passes):
            needed = f"a multiple of processes × gradient_accumulation_steps = {processes} × {passes}"
            raise ValueError(f"batch_size must be {needed}; got {config.batch_size}")
        self.model, self.images, self.config, self.accelerator = model, images, config, accelerator
        self.stop, self.log = options.get("stop", lambda: 0), options.get("log", [])
        model.requires_grad_(True).train().to(accelerator.device)
        for parameter in model.parameters() if processes > 1 else ():  # all start from the main process's weights
            parameter.data.copy_(broadcast(parameter.data))
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        course = "constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler
        self.schedule = get_scheduler(course, optimizer, None, config.warmup_steps, config.num_steps)
        self.optimizer = accelerator.prepare(optimizer)
        self.ema = EMAModel(model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
        parts = {"model": model, "optimizer": optimizer, "schedule": self.schedule, "ema": self.ema}
        parts |= {"scaler": accelerator.scaler} if accelerator.scaler else {}
        settings = asdict(config) | {"num_images": len(images), **options.get("provenance", {})}
        file = options.get("checkpoint")
        self.checkpoint = Checkpoint(file, parts, settings, accelerator, self.log) if file else None
        self.done = self.checkpoint.restore() if self.checkpoint else 0
        self.ema.to(accelerator.device)
        self.optimizer.zero_grad()

    def steps(self) -> Iterator[tuple[TrainingStep, Tensor]]:
        """Yield each step with this process's images of it; after the last the model holds the averaged weights."""
        images, config, accelerator = self.images, self.config, self.accelerator
        batches = global_batches(len(images), config, self.done, accelerator, getattr(images, "sequential", False))
        # a generator of its own: by default a loader draws from the global one
        loader = DataLoader(images, batch_sampler=batches, num_workers=config.num_workers, generator=torch.Generator())
        for number, batch in enumerate(loader, start=self.done):
            yield TrainingStep(number, config.seed, accelerator), batch.to(accelerator.device, self.model.dtype)
            self._keep(number + 1)
        self.ema.copy_to(self.model.parameters())
        self.model.eval()

    def update(self, step: TrainingStep, losses: dict[str, float | None]) -> float:
        """Average and clip the gradients, step, and return their norm before; refuse a loss or norm not finite."""
        if self.accelerator.num_processes > 1:
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            flat = parameters_to_vector([gradient.contiguous() for gradient in gradients])
            vector_to_parameters(self.accelerator.reduce(flat, "mean"), gradients)
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        told = losses | {"gradient norm": norm}
        decisive = losses if self.accelerator.scaler else told  # fp16's scaler skips a step whose gradient overflows
        if not all(math.isfinite(value) for value in decisive.values() if value is not None):
            self._refuse(f"step {step.number + 1}: {', '.join(f'{name} = {value}' for name, value in told.items())}")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        return norm

    def _keep(self, done: int) -> None:
        asked = torch.tensor([self.stop()], device=self.accelerator.device)
        number = int(self.accelerator.gather(asked).max())  # what one process is asked, all do
        if number or done % self.config.checkpoint_every == 0 or done == self.config.num_steps:
            if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
                self._refuse(f"step {done} left weights that are not finite")
            if self.checkpoint:
                self.checkpoint.save(done)
        if number:
            after = f"stopped by {signal.Signals(number).name} after step {done} of {self.config.num_steps}"
            raise TrainingInterrupted(f"{after}; {self._kept()}", number)

    def _kept(self) -> str:
        return self.checkpoint.kept if self.checkpoint else "no checkpoint was asked for"

    def _refuse(self, message: str) -> None:
        raise FloatingPointError(f"{message}; {self._kept()}. Lower learning_rate or the weights of the loss")


def accelerator_for(device: str, mixed_precision: str = "no") -> Accelerator:
    """Return accelerate's handle on the device that an option named, for this process of however many."""
    chosen = resolve_device(device)
    if mixed_precision == "fp16" and chosen.type == "cpu":
        raise ValueError("mixed_precision is 'fp16', which needs a CUDA device; give 'bf16' or 'no' on a CPU")
    if mixed_precision == "bf16" and chosen.type == "cpu" and not _has_bf16():
        told = "this processor has no bf16 instructions: mixed_precision bf16 is some ten times slower than no"
        warnings.warn(told, stacklevel=2)
    if chosen.index is not None:  # accelerate takes the current device
        torch.cuda.set_device(chosen)
    return Accelerator(mixed_precision=mixed_precision, cpu=chosen.type == "cpu")


def _has_bf16() -> bool:
    """Whether Linux lists bf16 instructions of x86 or Arm; where nothing is listed, nothing is claimed."""
    flags = set(CPU_INFO.read_text().split()) if CPU_INFO.is_file() else {"bf16"}
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
