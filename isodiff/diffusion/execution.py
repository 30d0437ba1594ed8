"""Where and how the passes of a training step run: device, recomputed, compiled. What they compute is the same."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from isodiff.parameters import resolve_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diffusers import UNet2DModel


@contextmanager
def checkpointing(unet: UNet2DModel, enabled: bool) -> Iterator[None]:
    """Keep only the blocks' inputs for the backward pass inside the `with` block, and compute the rest again.

    Gradients are the same, in less memory and about a third more time.

    Args:
        unet: a diffusers model, or one with its prompt fixed; afterwards it is as before.
        enabled: whether to; if not, this does nothing but switch it off, where the model had it on.

    Raises:
        ValueError: the model does not support it.
    """
    unet = getattr(unet, "unet", unet)  # of a fixed prompt
    before = unet.is_gradient_checkpointing
    if enabled != before:
        _set_checkpointing(unet, enabled)
    try:
        yield
    finally:
        if enabled != before:
            _set_checkpointing(unet, before)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``torch.compile`` of a function or model, with an error of one line where it does not work.

    Args:
        function: what to compile, at its first call and for each new shape.

    Returns:
        The compiled function.

    Note:
        The function raises RuntimeError at its first call where there is no compiler, or none that can do it.
    """
    quick = torch.compile(function)

    @wraps(function.forward if isinstance(function, torch.nn.Module) else function)
    def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - the function's own
        try:
            return quick(*arguments, **options)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"compile = True does not work here: {type(error).__name__}: {reason}; "
                "it needs a C++ compiler on CPUs and Triton on GPUs, or set compile to False"
            ) from error

    return call


def _set_checkpointing(unet: UNet2DModel, enabled: bool) -> None:
    if enabled:
        unet.enable_gradient_checkpointing()
    else:
        unet.disable_gradient_checkpointing()


def accelerator_for(device: str, mixed_precision: str = "no") -> Accelerator:
    """Return accelerate's handle on the device that an option named, for this process of however many."""
    chosen = resolve_device(device)
    cpu = chosen.type == "cpu"
    if mixed_precision == "fp16" and cpu:
        raise ValueError("mixed_precision is 'fp16', which needs a CUDA device; give 'bf16' or 'no' on a CPU")
    if chosen.index is not None:  # accelerate takes the current device
        torch.cuda.set_device(chosen)
    return Accelerator(mixed_precision=mixed_precision, cpu=cpu)
