"""Checkpoints of a training run: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel


class Checkpoint:
    """Weights, their moving average, Adam's moments and the settings of a run, in one file.

    Args:
        path: the file.
        unet: the model in training.
        ema: its moving average.
        optimizer: Adam over `unet.parameters()`.
        config: the run's settings; a checkpoint of other settings is refused, except for those in `FREE`.
    """

    FREE = ("checkpoint_every", "num_workers")

    def __init__(
        self,
        path: str | Path,
        unet: UNet2DModel,
        ema: EMAModel,
        optimizer: torch.optim.Adam,
        config: dict[str, Any],
    ) -> None:
        self.path, self.unet, self.ema, self.optimizer, self.config = Path(path), unet, ema, optimizer, config
        self.saved_step = 0

    def save(self, step: int) -> None:
        """Write the state after `step` steps; the file before stays whole until the new one is."""
        tensors = {}
        for index, (parameter, average) in enumerate(zip(self.unet.parameters(), self.ema.shadow_params, strict=True)):
            moments = self.optimizer.state[parameter]
            tensors |= {f"weight.{index}": parameter, f"ema.{index}": average}
            tensors |= {f"{name}.{index}": moments[name] for name in ("step", "exp_avg", "exp_avg_sq")}
        metadata = {"step": str(step), "config": json.dumps(self.config)}
        partial = self.path.with_name(f".{self.path.name}.partial")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path)
        self.saved_step = step

    @torch.no_grad()
    def restore(self) -> int:
        """Load the state if there is one.

        Returns:
            The number of steps done, 0 if there is no checkpoint.

        Raises:
            ValueError: the file is damaged, or belongs to a run with other settings or another model.
        """
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"the checkpoint {self.path.name} is damaged ({error}); delete it to start again"
            ) from error
        self._require_same_run(json.loads(metadata["config"]))
        for index, (parameter, average) in enumerate(zip(self.unet.parameters(), self.ema.shadow_params, strict=True)):
            if f"weight.{index}" not in tensors or tensors[f"weight.{index}"].shape != parameter.shape:
                raise ValueError(
                    f"the checkpoint {self.path.name} belongs to another architecture; delete it to start again"
                )
            parameter.copy_(tensors[f"weight.{index}"])
            average.copy_(tensors[f"ema.{index}"])
            self.optimizer.state[parameter] = {
                "step": tensors[f"step.{index}"],
                "exp_avg": tensors[f"exp_avg.{index}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{index}"].to(parameter.device),
            }
        self.saved_step = int(metadata["step"])
        self.ema.optimization_step = self.saved_step
        return self.saved_step

    def _require_same_run(self, written: dict[str, Any]) -> None:
        differ = [name for name in self.config if name not in self.FREE and written.get(name) != self.config[name]]
        if differ:
            detail = ", ".join(f"{name} = {written.get(name)!r} there, {self.config[name]!r} now" for name in differ)
            raise ValueError(
                f"the checkpoint {self.path.name} was written with other settings: {detail}; delete it to start again"
            )
