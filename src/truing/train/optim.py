"""AdamW with fp32 masters, the learning-rate schedule, and clipping by the global norm.

Weights in bf16 have a master copy in fp32 that takes the update and is rounded back (plain AdamW on bf16 loses every update
smaller than 1/256 of the weight). Weights in fp32 are their own masters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adamw import adamw


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Example: `Optimizer(lr=1e-6, warmup=0.1)`."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    """Highest learning rate. Customary: 2e-5 (SFT), 1e-6 (DPO), 1e-5 (reward model); with LoRA ten to fifty times that."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls after warm-up: not, in a line to 0, or along half a cosine to 0."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps over which the rate rises from 0."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the mean square. Customary: 1e-8; 1e-5 for PPO."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay of matrices; vectors (norms, biases) never decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm when they exceed it."""

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step 0, 1, ..., total - 1."""
        warmup = round(self.warmup * total)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        if self.schedule == "linear":
            return self.lr * (1 - progress)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr


class AdamW:
    """Decoupled weight decay Adam (Loshchilov and Hutter 2019, arXiv 1711.05101) over named parameters, one parameter at a time.

    One at a time, so that the fp32 copy of a bf16 gradient never exists for the whole model at once.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: Optimizer) -> None:
        self.parameters = dict(parameters)
        self.settings = settings
        self.masters = {name: p.detach().float().clone() for name, p in self.parameters.items() if p.dtype != torch.float32}
        self.first = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.steps = 0

    def grad_norm(self) -> float:
        """Global L2 norm of the gradients, in fp32."""
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in self.parameters.values() if p.grad is not None]
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    @torch.no_grad()
    def step(self, lr: float, norm: float) -> None:
        """Clip by the global norm found before, update, and drop the gradients."""
        s = self.settings
        scale = min(1.0, s.max_grad_norm / (norm + 1e-6))
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            master = self.masters.get(name, parameter.data)
            adamw(
                [master],
                [parameter.grad.float() * scale],
                [self.first[name]],
                [self.second[name]],
                [],
                [torch.tensor(float(self.steps), device=master.device)],
                fused=True,
                amsgrad=False,
                beta1=s.beta1,
                beta2=s.beta2,
                lr=lr,
                weight_decay=s.weight_decay if parameter.ndim > 1 else 0.0,
                eps=s.eps,
                maximize=False,
            )
            if name in self.masters:
                parameter.copy_(master)
        self.steps += 1
        self.drop_gradients()

    def drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"first": self.first, "second": self.second, "masters": self.masters}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        for group, mine in self.state_tensors().items():
            for name, tensor in mine.items():
                tensor.copy_(tensors[group][name])
        self.steps = steps
