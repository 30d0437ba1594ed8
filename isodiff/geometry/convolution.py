r"""Convolutions whose second derivatives cost what their first ones do.

The number ``⟨g, w * x⟩`` is linear in the output covector ``g``, the kernel ``w`` and the input ``x``: the convolution
``w * x``, its input gradient and its kernel gradient are the three faces of one trilinear form, and the derivatives of
each are the other two. Written that way, a backward pass of any order calls the library's own gradient kernels.
PyTorch instead writes the kernel gradient of a backward pass as a convolution whose *kernel* is a whole image, which
is slow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode


class TrilinearConvolutions(TorchFunctionMode):
    """Run every ``conv2d`` with a parameter for a kernel through the trilinear form; the results are the same.

    While ``inputs_only`` is set, backward passes skip the kernels' gradients: a node written in Python is not told that
    only the gradient in the input was asked for. While ``zero_covector`` is set, they start from zero, so that every
    gradient is zero; only their graph is wanted, for a Jacobian-vector product by double backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs_only = self.zero_covector = False

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        """Replace ``torch.conv2d``; leave every other function alone."""
        kwargs = kwargs or {}
        return self._conv2d(*args, **kwargs) if func is torch.conv2d else func(*args, **kwargs)

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
        if not isinstance(weight, Parameter) or isinstance(padding, str) or input.dtype != weight.dtype:
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        form = _Form(self, _pair(stride), _pair(padding), _pair(dilation), groups)
        return _Forward.apply(input, weight, bias, form)


@dataclasses.dataclass(frozen=True)
class _Form:
    """The trilinear form: everything but its three arguments."""

    mode: TrilinearConvolutions
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


class _Forward(Function):
    """``w * x``, the gradient of ``⟨g, w * x⟩`` in ``g``, plus a bias."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, w: Tensor, bias: Tensor | None, form: _Form) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.form = form
        return torch.conv2d(x, w, bias, form.stride, form.padding, form.dilation, form.groups)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), form = ctx.saved_tensors, ctx.form
        need_x, need_w, need_bias, _ = ctx.needs_input_grad
        if form.mode.inputs_only:
            need_w = need_bias = False
        if not torch.is_grad_enabled():  # the last derivative: one call gives all
            return (*form.gradients(g, x, w, need_x, need_w, need_bias), None)
        return (
            _InputGradient.apply(g, w, x.shape, form) if need_x else None,
            _KernelGradient.apply(g, x, w.shape, form) if need_w else None,
            g.sum((0, 2, 3)) if need_bias else None,
            None,
        )


class _InputGradient(Function):
    """The gradient of ``⟨g, w * x⟩`` in ``x``."""

    @staticmethod
    def forward(ctx: FunctionCtx, g: Tensor, w: Tensor, shape: torch.Size, form: _Form) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.form = form
        if form.mode.zero_covector:
            return g.new_zeros(shape)
        return form.gradients(g, w.new_empty(1).expand(shape), w, True, False, False)[0]

    @staticmethod
    def backward(ctx: FunctionCtx, x: Tensor) -> tuple[Tensor | None, ...]:
        (g, w), form = ctx.saved_tensors, ctx.form
        need_g, need_w, *_ = ctx.needs_input_grad
        need_w &= not form.mode.inputs_only
        return (
            _Forward.apply(x, w, None, form) if need_g else None,
            _KernelGradient.apply(g, x, w.shape, form) if need_w else None,
            None,
            None,
        )


class _KernelGradient(Function):
    """The gradient of ``⟨g, w * x⟩`` in ``w``."""

    @staticmethod
    def forward(ctx: FunctionCtx, g: Tensor, x: Tensor, shape: torch.Size, form: _Form) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.form = form
        return form.gradients(g, x, x.new_empty(1).expand(shape), False, True, False)[1]

    @staticmethod
    def backward(ctx: FunctionCtx, w: Tensor) -> tuple[Tensor | None, ...]:
        (g, x), form = ctx.saved_tensors, ctx.form
        need_g, need_x, *_ = ctx.needs_input_grad
        return (
            _Forward.apply(x, w, None, form) if need_g else None,
            _InputGradient.apply(g, w, x.shape, form) if need_x else None,
            None,
            None,
        )


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
