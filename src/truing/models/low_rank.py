"""The forward and backward pass of a layer with an adapter: three passes over memory fewer than the sum of its parts takes.

peft makes base(x), B(A(x)), its multiple and the sum one after the other, each as wide as the layer. Here the two narrow products
are added where the wide ones already stand, and the frozen weight's gradient is never made. In bf16 that rounds less often.
"""

from types import MethodType
from typing import Any, cast

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear
from torch import Tensor, nn

from truing.models.few_rows import few


class _LowRank(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T (Hu et al. 2021, arXiv 2106.09685, eq. 3) with W frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.flatten(0, -2)
        wide, narrow = _sum(rows, weight, bias, a, b, scale)
        ctx.save_for_backward(rows, weight, a, b, narrow)
        ctx.scale, ctx.shape = scale, x.shape
        return wide.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, narrow = ctx.saved_tensors
        x_needed, _, _, a_needed, b_needed, _ = ctx.needs_input_grad
        grad = grads[0].flatten(0, -2)
        above = (grad @ b).mul_(ctx.scale)
        x_grad = (grad @ weight).addmm_(above, a).view(ctx.shape) if x_needed else None
        a_grad = above.T @ rows if a_needed else None
        b_grad = (grad.T @ narrow).mul_(ctx.scale) if b_needed else None
        return x_grad, None, None, a_grad, b_grad, None


def _sum(rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    narrow = rows @ a.T
    if few(rows) and bias is None:
        return (weight @ rows.T).addmm_(b, narrow.T, alpha=scale).T.contiguous(), narrow
    return nn.functional.linear(rows, weight, bias).addmm_(narrow, b.T, alpha=scale), narrow


def shorten(layer: Linear) -> None:
    """Give a linear layer with adapters this forward, in place; what it is not made for goes peft's way."""
    if isinstance(layer.base_layer, nn.Linear):
        # A method, so that a copy of the layer has one of its own.
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]


def _forward(layer: Linear, x: Float[Tensor, "*batch width"], *args: Any, **options: Any) -> Float[Tensor, "*batch out"]:
    base = cast(nn.Linear, layer.base_layer)
    names = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
    if not names:
        return cast(Tensor, base(x))
    (name, *others) = names
    a, b = cast(Tensor, layer.lora_A[name].weight), cast(Tensor, layer.lora_B[name].weight)
    if others or args or options or layer.merged or base.weight.requires_grad or not x.dtype == base.weight.dtype == a.dtype:
        return cast(Tensor, Linear.forward(layer, x, *args, **options))
    if not torch.is_grad_enabled():  # the same numbers; the function alone costs as much as the product of a few rows
        return _sum(x.flatten(0, -2), base.weight, base.bias, a, b, float(layer.scaling[name]))[0].view(*x.shape[:-1], -1)
    result: Tensor = _LowRank.apply(x, base.weight, base.bias, a, b, float(layer.scaling[name]))
    return result
