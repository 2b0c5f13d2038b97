"""Root-mean-square norms and gated feed-forward layers with fewer passes over memory and half as much kept for the backward pass.

`fuse` replaces the forward of those modules of a model whose own output these functions reproduce, found by trying, not by name.
What is computed stays the same: in fp32 to rounding, in bf16 with the same roundings in the same places.
"""

from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROWS = 3
"""Rows on which a module and its replacement are compared."""


class _RootMeanSquareNorm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + eps), rounded to the dtype of x, times w (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, inverse = _normed(x, eps)
        ctx.save_for_backward(normed, weight, inverse)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, weight, inverse = ctx.saved_tensors
        slope = grads[0].to(torch.float32, copy=True)
        wide = normed.float()
        product, scale = slope * wide, weight.float()
        weight_grad = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        along = (product @ scale).unsqueeze(-1).div_(-normed.shape[-1])  # by vecdot it would be another pass
        slope.mul_(scale)
        return slope.addcmul_(wide, along).mul_(inverse).to(normed.dtype), weight_grad, None


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.float32, copy=True)
    inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide.mul_(inverse).to(x.dtype), inverse


class _GatedSiLU(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202, eq. 6); silu(gate) is computed again going back."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        up_grad = nn.functional.silu(gate).mul_(grads[0])
        return torch.ops.aten.silu_backward(grads[0] * up, gate), up_grad


def fuse(model: nn.Module) -> int:
    """Replace what can be replaced, in place; returns the number of modules. Calling it again changes nothing."""
    return sum(_replaced(module) for module in model.modules())


def _replaced(module: Any) -> bool:
    if "forward" in vars(module):
        return False
    if type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), Tensor):
        forward, width = MethodType(_norm, module), module.weight.shape[-1]
    elif all(isinstance(getattr(module, name, None), nn.Linear) for name in ("gate_proj", "up_proj", "down_proj")):
        forward, width = MethodType(_feed_forward, module), module.gate_proj.in_features
    else:
        return False
    if not _agrees(module, forward, width):
        return False
    module.forward = forward  # a method, so that a copy of the module has one of its own
    return True


def _norm(module: Any, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    eps = next((float(value) for value in (getattr(module, name, None) for name in ("variance_epsilon", "eps")) if value), 0.0)
    if not torch.is_grad_enabled():  # the same numbers; the function alone costs as much as the norm of a few rows
        return _normed(x, eps)[0] * module.weight
    result: Tensor = _RootMeanSquareNorm.apply(x, module.weight, eps)
    return result


def _feed_forward(module: Any, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    gate, up = module.gate_proj(x), module.up_proj(x)
    gated = _GatedSiLU.apply(gate, up) if torch.is_grad_enabled() else nn.functional.silu(gate).mul_(up)
    result: Tensor = module.down_proj(gated)
    return result


@torch.no_grad()
def _agrees(module: nn.Module, forward: Any, width: int) -> bool:
    weight = next(module.parameters())
    x = torch.linspace(-2.0, 3.0, ROWS * width, device=weight.device).sin().view(1, ROWS, width).to(weight.dtype)
    own, found = module(x).float(), forward(x).float()
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2**-7
    return own.shape == found.shape and bool((own - found).abs().max() <= tolerance * own.abs().max())
