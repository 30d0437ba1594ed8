"""One batch over several processes: what each draws and reads of it, and the means all of them share.

Everything random is drawn for the global batch from (seed, step, purpose), on the CPU, by every process alike; each
then takes its own rows. Nothing depends on the number of processes but the order in which sums are rounded.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator

    from isodiff.diffusion.config import FinetuneConfig

_STREAMS = ("epoch", "flip", "dsm", "isometry", "layers", "posterior")  # new ones at the end: the position counts


class GlobalBatches(Sampler[list[int]]):
    """This process's slice of each global batch: every image once an epoch, in an order set by the seed alone.

    Args:
        num_images: in the dataset.
        config: the settings of the run.
        start: steps already done.
        accelerator: says which process this is.
        sequential: whether the dataset is a stream, shuffled by itself: then positions come as they are, and go on
            over the epochs.
    """

    def __init__(
        self,
        num_images: int,
        config: FinetuneConfig,
        start: int,
        accelerator: Accelerator,
        *,
        sequential: bool = False,
    ) -> None:
        self.num_images, self.config, self.start, self.accelerator = num_images, config, start, accelerator
        self.sequential = sequential

    def __len__(self) -> int:
        return self.config.num_steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        positions = self._positions()
        for _ in range(self.start, self.config.num_steps):
            batch = list(islice(positions, self.config.batch_size))
            yield batch[self.accelerator.process_index :: self.accelerator.num_processes]

    def _positions(self) -> Iterator[int]:
        """Yield, without end, the image at each row of the global batches from `start` on."""
        first = self.start * self.config.batch_size
        if self.sequential:
            yield from count(first)
        current, done = divmod(first, self.num_images)
        for epoch in count(current):
            order = torch.randperm(self.num_images, generator=generator_of(self.config.seed, epoch, "epoch"))
            yield from order[done:].tolist()
            done = 0


def generator_of(seed: int, step: int, stream: str) -> torch.Generator:
    """Return independent random numbers for each (seed, step, purpose)."""
    return torch.Generator().manual_seed(_derived_seed(seed, step, _STREAMS.index(stream)))


def own_rows(rows: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Take this process's rows of a tensor drawn for the global batch."""
    return rows[accelerator.process_index :: accelerator.num_processes].to(accelerator.device)


@contextmanager
def layer_randomness(seed: int, step: int, accelerator: Accelerator, index: int) -> Iterator[None]:
    """Make what layers draw, such as dropout, a function of (seed, step, process, pass); the caller's state returns."""
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_derived_seed(seed, step, _STREAMS.index("layers"), accelerator.process_index, index))
        yield


def global_mean(values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Average a tensor over the processes, to the same bits on each."""
    return accelerator.gather(values[None]).mean(0)


def any_process(number: int, accelerator: Accelerator) -> int:
    """Return the largest of the processes' numbers: what one knows, all know."""
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def average_gradients(module: torch.nn.Module, accelerator: Accelerator) -> None:
    """Replace each process's gradients by their mean, in one exchange."""
    if accelerator.num_processes > 1:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = parameters_to_vector([gradient.contiguous() for gradient in gradients])  # they may be channels-last
        vector_to_parameters(accelerator.reduce(flat, "mean"), gradients)


def _derived_seed(*entropy: int) -> int:
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))
