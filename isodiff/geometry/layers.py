r"""Layers that double backward differentiates rightly and cheaply, and those that it cannot.

A map may be applied row by row and its products differentiated only if no layer mixes rows and each has right third
derivatives, which the gradient of a squared product contains. PyTorch's own layer normalisation has wrong ones: it
takes mean and variance for constants there. Composed of elementary operations it has right ones.

The number ``⟨g, w * x⟩`` is linear in the output covector ``g``, the kernel ``w`` and the input ``x``: the convolution
``w * x``, its input gradient and its kernel gradient are the three faces of one trilinear form, and the derivatives of
each are the other two. Written that way, a backward pass of any order calls the library's own gradient kernels, where
PyTorch writes the kernel gradient of a backward pass as a convolution whose *kernel* is a whole image, which is slow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

# what autograd's graph calls an operation that double backward gets wrong or refuses, and the remedy
_UNSUITABLE = {
    "NativeLayerNormBackward0": "layer normalisation that is scripted or native; call torch.nn.functional.layer_norm",
    "CheckpointFunctionBackward": "a reentrant checkpoint; pass use_reentrant=False to torch.utils.checkpoint",
    "CompiledFunctionBackward": "a compiled network; pass the network itself",
}


class RowByRow(TorchFunctionMode):
    """Refuse layers that mix the rows of a batch: normalisation over it, before any running statistic moves."""

    active: ClassVar[RowByRow | None] = None

    def __enter__(self) -> RowByRow:
        self._hook = register_module_forward_pre_hook(_refuse_batch_norm)
        self._before, RowByRow.active = RowByRow.active, self
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        RowByRow.active = self._before
        super().__exit__(*error)

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        """Call the function unless it normalises over the batch."""
        kwargs = kwargs or {}
        if func in (F.batch_norm, torch.batch_norm) and kwargs.get("training", args[5] if len(args) > 5 else False):
            raise ValueError(_MIXES_ROWS.format("batch_norm with training=True"))
        return func(*args, **kwargs)


class TwiceDifferentiable(RowByRow):
    """Run layers so that products with the Jacobian have right and cheap derivatives; values are the same to rounding.

    While ``inputs_only`` is set, backward passes skip the kernels' gradients: a node written in Python is not told that
    only the gradient in the input was asked for. While ``zero_covector`` is set, they start from zero, so that every
    gradient is zero; only their graph is wanted, for a Jacobian-vector product by double backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs_only = self.zero_covector = False

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        """Replace what has a replacement here."""
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return self._conv2d(*args, **kwargs)
        if func in (F.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **kwargs)
        if func is F.instance_norm:
            return _instance_norm(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> Tensor:
        # A kernel that is no parameter may depend on the input, and then `inputs_only` must not skip its gradient.
        plain = isinstance(weight, nn.Parameter) and not isinstance(padding, str) and input.dtype == weight.dtype
        plain &= input.ndim == 4 and not torch.is_autocast_enabled(input.device.type)
        # torch.func's transformations know no node written in Python
        if not plain or torch._C._functorch.is_functorch_wrapped_tensor(input):
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        form = _Form(self, _pair(stride), _pair(padding), _pair(dilation), groups)
        return _Face.apply(None, input, weight, bias, None, form)


_MIXES_ROWS = "f must map each row by itself, got {}; put it into eval mode or normalise otherwise"


def _refuse_batch_norm(module: nn.Module, _: object) -> None:
    if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
        raise ValueError(_MIXES_ROWS.format(f"{module} in training mode"))


def require_twice_differentiable(y: Tensor) -> None:
    """Refuse the output of a map whose graph holds an operation without right third derivatives."""
    seen, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (layer := _UNSUITABLE.get(node.name())) is not None:
            raise ValueError(
                f"f has no products by double backward: it contains {layer}, or take the loss with route='differences'"
            )
        waiting += [below for below, _ in node.next_functions]


def recomputed(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return f(x) and keep x alone of it: backward passes of any order evaluate f again, with the same layers."""
    return checkpoint(f, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _Again(RowByRow.active)))


class _Again:
    """The layers under which f was evaluated, entered anew at each evaluation: their block is over by then."""

    def __init__(self, layers: RowByRow | None) -> None:
        self.layers = layers

    def __enter__(self) -> None:
        self.stack = ExitStack()
        if isinstance(self.layers, TwiceDifferentiable):
            self.stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.stack.enter_context(self.layers or nullcontext())

    def __exit__(self, *error: object) -> None:
        self.stack.close()


def _normalise(x: Tensor, dims: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dims, keepdim=True)
    y = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)


def _layer_norm(
    input: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Tensor:
    return _normalise(input, tuple(range(-len(normalized_shape), 0)), weight, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    weight, bias = (None if part is None else part.view(-1, *[1] * (input.ndim - 2)) for part in (weight, bias))
    return _normalise(input, tuple(range(2, input.ndim)), weight, bias, eps)


@dataclasses.dataclass(frozen=True)
class _Form:
    """The trilinear form: everything but its three arguments."""

    mode: TwiceDifferentiable
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def gradients(self, g: Tensor, x: Tensor, w: Tensor, *wanted: bool) -> tuple[Tensor | None, ...]:
        """Return the gradients in ``x``, ``w`` and bias; of an argument that is not needed only the shape is read."""
        shape = [w.shape[0]] if wanted[2] else None
        return torch.ops.aten.convolution_backward(
            g, x, w, shape, self.stride, self.padding, self.dilation, False, (0, 0), self.groups, wanted
        )


class _Face(Function):
    """The gradient of ``⟨g, w * x⟩`` in that one of ``g``, ``x`` and ``w`` which is None; in ``g``, plus a bias."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        g: Tensor | None,
        x: Tensor | None,
        w: Tensor | None,
        bias: Tensor | None,
        shape: torch.Size | None,
        form: _Form,
    ) -> Tensor:
        ctx.save_for_backward(g, x, w)
        ctx.form = form
        if g is None:
            return torch.conv2d(x, w, bias, form.stride, form.padding, form.dilation, form.groups)
        if w is None:
            return form.gradients(g, x, x.new_empty(1).expand(shape), False, True, False)[1]
        if form.mode.zero_covector:
            return g.new_zeros(shape)
        return form.gradients(g, w.new_empty(1).expand(shape), w, True, False, False)[0]

    @staticmethod
    def backward(ctx: FunctionCtx, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        saved, form = ctx.saved_tensors, ctx.form
        g, x, w = (cotangent if part is None else part for part in saved)
        need_g, need_x, need_w, need_bias, *_ = ctx.needs_input_grad
        if form.mode.inputs_only:
            need_w = need_bias = False
        if saved[0] is None and not torch.is_grad_enabled():  # the last derivative: one call gives all
            return (None, *form.gradients(g, x, w, need_x, need_w, need_bias), None, None)
        return (
            _Face.apply(None, x, w, None, None, form) if need_g else None,
            _Face.apply(g, None, w, None, x.shape, form) if need_x else None,
            _Face.apply(g, x, None, None, w.shape, form) if need_w else None,
            g.sum((0, 2, 3)) if need_bias else None,
            None,
            None,
        )


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
