"""Checkpoints of a training run: checksummed safetensors files, replaced atomically, the last two kept.

The newest file carries the name asked for, the one before it the same name with `.previous` before the suffix. A new
file is written whole beside them before either is touched, so neither a kill nor a full disk can cost more than the
steps since the last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel


def checkpoint_files(path: Path) -> tuple[Path, Path, Path]:
    """Return the files that a checkpoint may have: the newest, the one before, and the one being written."""
    return path, path.with_name(f"{path.stem}.previous{path.suffix}"), path.with_name(f".{path.name}.partial")


class Checkpoint:
    """Weights, their moving average, Adam's moments, step and settings of a run, in one file with its SHA-256.

    Random numbers and the sampler's position are functions of the seed and the step, which are both in it.

    Args:
        path: the file.
        unet: the model in training.
        ema: its moving average.
        optimizer: Adam over `unet.parameters()`.
        config: the run's settings; a checkpoint of other settings is refused, except for those in `FREE`.
        accelerator: of the run. All processes read a checkpoint, the main one writes it; every method is called by all.
    """

    FREE = ("checkpoint_every", "num_workers")

    def __init__(
        self,
        path: str | Path,
        unet: UNet2DModel,
        ema: EMAModel,
        optimizer: torch.optim.Adam,
        config: dict[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.path, self.unet, self.ema, self.optimizer, self.config = Path(path), unet, ema, optimizer, config
        self.accelerator, self.scaler, self.num_processes = accelerator, accelerator.scaler, accelerator.num_processes
        _, self.previous, self.partial = checkpoint_files(self.path)
        self.saved_step, self.last_good = 0, None

    @property
    def kept(self) -> str:
        """What an interrupted run can go on from, for a message."""
        if self.last_good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is step {self.saved_step}, {self.last_good}"

    def save(self, step: int) -> None:
        """Write the state after `step` steps; both files before stay whole until the new one is on disk.

        Raises:
            OSError: it could not be written, for example because the disk is full.

        Note:
            The main process holds the state twice in its memory meanwhile: 32 bytes a parameter in float32.
        """
        failure = None
        if self.accelerator.is_main_process:
            try:
                self._write(step)
            except OSError as error:
                failure = error
        (reason,) = broadcast_object_list([None if failure is None else str(failure)])
        if reason is not None:
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self.path} ({reason}); {self.kept}, and "
                "nothing written before is lost. Make room and run the same command again to go on"
            ) from failure
        self.saved_step, self.last_good = step, self.path

    @torch.no_grad()
    def restore(self) -> int:
        """Load the newest state that is whole, if there is one, and warn if that is not the newest file.

        Returns:
            The number of steps done, 0 if there is no checkpoint.

        Raises:
            ValueError: no file is whole, it belongs to a run with other settings or another model, or the processes do
                not all find the same.
        """
        self._read_newest()
        here = torch.tensor([self.saved_step], device=self.accelerator.device)
        steps = self.accelerator.gather(here).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes found checkpoints of steps {', '.join(map(str, steps))} at {self.path}; "
                "all must read the same file, in a directory that all machines share"
            )
        return self.saved_step

    def _write(self, step: int) -> None:
        tensors = {}
        for index, (parameter, average) in enumerate(zip(self.unet.parameters(), self.ema.shadow_params, strict=True)):
            tensors |= {f"weight.{index}": parameter, f"ema.{index}": average}
            # Adam has no moments yet where fp16 has skipped every step so far.
            tensors |= {f"{name}.{index}": moment for name, moment in self.optimizer.state.get(parameter, {}).items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"step": str(step), "config": json.dumps(self.config), "num_processes": str(self.num_processes)}
        if self.scaler is not None:
            metadata["scaler"] = json.dumps(self.scaler.state_dict())
        metadata["sha256"] = _digest(tensors, metadata)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not save_file: a kill would leave its temporary file, of another name each time.
            self.partial.write_bytes(save(tensors, metadata))
            _flush(self.partial)
            if self.last_good == self.path:  # a damaged file must not take the place of the good one before it
                self.path.replace(self.previous)
                self.last_good = self.previous
            self.partial.replace(self.path)
            with suppress(OSError):  # not every file system can flush a directory
                _flush(self.path.parent)
        finally:
            with suppress(OSError):
                self.partial.unlink(missing_ok=True)

    def _read_newest(self) -> None:
        refused = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                tensors, metadata = _read(path)
            except (SafetensorError, OSError, ValueError) as error:
                refused.append(f"{path} is damaged ({error})")
                continue
            self._load(path, tensors, metadata)
            if path == self.previous:
                why = "; ".join(refused) or f"{self.path} is missing"
                self._warn(f"{why}; going on from {path}, step {self.saved_step}")
            written_by = int(metadata["num_processes"])
            if written_by != self.num_processes:
                self._warn(
                    f"{path} was written by {written_by} processes and there are {self.num_processes} now: the run "
                    "goes on the same up to rounding, not bit for bit"
                )
            return
        if refused:
            raise ValueError(
                f"no checkpoint is good: {'; '.join(refused)}. Put a copy in place, or delete them to start again"
            )

    def _warn(self, message: str) -> None:
        if self.accelerator.is_main_process:
            warnings.warn(message, stacklevel=5)

    def _load(self, path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        self._require_same_run(path, json.loads(metadata["config"]))
        parameters = list(self.unet.parameters())
        names = {f"weight.{index}": parameter.shape for index, parameter in enumerate(parameters)}
        if names != {name: tensor.shape for name, tensor in tensors.items() if name.startswith("weight.")}:
            raise ValueError(f"the checkpoint {path} belongs to another architecture; delete it to start again")
        for index, (parameter, average) in enumerate(zip(parameters, self.ema.shadow_params, strict=True)):
            parameter.copy_(tensors[f"weight.{index}"])
            average.copy_(tensors[f"ema.{index}"])
            # Copies: the tensors read are views of the file.
            if f"step.{index}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": tensors[f"step.{index}"].clone(),
                    "exp_avg": tensors[f"exp_avg.{index}"].to(parameter.device, copy=True),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{index}"].to(parameter.device, copy=True),
                }
        if self.scaler is not None:
            self.scaler.load_state_dict(json.loads(metadata["scaler"]))
        self.saved_step, self.last_good = int(metadata["step"]), path
        self.ema.optimization_step = self.saved_step

    def _require_same_run(self, path: Path, written: dict[str, Any]) -> None:
        names = [name for name in {**self.config, **written} if name not in self.FREE]
        differ = [name for name in names if written.get(name) != self.config.get(name)]
        if differ:
            detail = ", ".join(
                f"{name} = {written.get(name)!r} there, {self.config.get(name)!r} now" for name in differ
            )
            raise ValueError(
                f"the checkpoint {path} was written with other settings: {detail}; "
                "give those, or choose another output, or delete it to start again"
            )


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a file and check it against its own SHA-256."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = metadata.pop("sha256", None)
    if expected is None:
        raise ValueError("it carries no SHA-256")
    found = _digest(tensors, metadata)
    if found != expected:
        raise ValueError(f"its SHA-256 is {found[:12]}…, and {expected[:12]}… when it was written")
    return tensors, metadata


def _digest(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of everything a checkpoint says: names, types, shapes and bytes of its tensors, step and settings."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
