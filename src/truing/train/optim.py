"""AdamW with fp32 masters, the learning-rate schedule, and clipping by the global norm.

Plain AdamW on bf16 loses every update smaller than 1/256 of the weight. So weights in bf16 have a master copy in fp32 that takes
the update and is rounded back; or, without one, they are rounded up or down by chance, right on average. Weights in fp32 are their
own masters.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.optim.adamw import adamw

from truing.randomness import counted_seed

AT_ONCE = 1 << 18
"""Numbers updated at once: gradient, weight and moments together stay in the cache."""
NOISE_STRIDE = 40503
"""Neighbouring groups of weights read the noise of a step from places this far apart."""


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
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """How bf16 weights keep small updates: by fp32 masters, rounded to nearest; or, in less memory, rounded by chance."""

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
    """Decoupled weight decay Adam (Loshchilov and Hutter 2019, arXiv 1711.05101) over named parameters, some numbers at a time.

    Few at a time, so that no fp32 copy of all bf16 gradients ever exists, and what is worked on stays in the cache.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: Optimizer) -> None:
        self.parameters = dict(parameters)
        self.settings = settings
        narrow = {name: p for name, p in self.parameters.items() if p.dtype != torch.float32 and settings.rounding == "nearest"}
        self.masters = {name: p.detach().float().clone() for name, p in narrow.items()}
        self.first = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.steps = 0
        self.missed: dict[str, int] = {}
        """Steps in which a parameter had no gradient, of those that ever had none: its moments are as young as its own steps."""

    def grad_norm(self) -> float:
        """Global L2 norm of the gradients, in fp32."""
        # piece by piece, because a norm in another dtype copies all of its input first
        norms = [
            torch.linalg.vector_norm(piece.float())
            for parameter in self.parameters.values()
            if parameter.grad is not None
            for piece in parameter.grad.reshape(-1).split(AT_ONCE)
        ]
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    @torch.no_grad()
    def step(self, lr: float, norm: float) -> None:
        """Clip by the global norm found before, update, and drop the gradients."""
        scale = min(1.0, self.settings.max_grad_norm / (norm + 1e-6))
        noise = self._noise() if self.settings.rounding == "stochastic" else None
        scratch = torch.empty(2, AT_ONCE, device=next(iter(self.parameters.values())).device)
        for number, pieces in enumerate(self._groups()):
            self._update(pieces, lr, scale, noise[number * NOISE_STRIDE % AT_ONCE :] if noise is not None else None, scratch)
        self.steps += 1
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                self.missed[name] = self.missed.get(name, 0) + 1
        self.drop_gradients()

    def _groups(self) -> Iterator[list[tuple[str, slice]]]:
        """Pieces of parameters with a gradient, at most `AT_ONCE` numbers together, all of which decay or none."""
        group: list[tuple[str, slice]] = []
        room = AT_ONCE
        decays = False
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            if group and decays != (parameter.ndim > 1):
                yield group
                group, room = [], AT_ONCE
            decays = parameter.ndim > 1
            start = 0
            while start < parameter.numel():
                end = min(start + room, parameter.numel())
                group.append((name, slice(start, end)))
                room -= end - start
                start = end
                if not room:
                    yield group
                    group, room = [], AT_ONCE
        if group:
            yield group

    def _update(
        self,
        pieces: Sequence[tuple[str, slice]],
        lr: float,
        scale: float,
        noise: Tensor | None,
        scratch: Float[Tensor, "two weight"],
    ) -> None:
        s = self.settings
        weights, grads, first, second = [], [], [], []
        at = 0
        for name, cut in pieces:
            parameter = self.parameters[name]
            assert parameter.grad is not None
            place = slice(at, at + cut.stop - cut.start)
            at = place.stop
            grads.append(scratch[0][place].copy_(parameter.grad.reshape(-1)[cut]))
            own = self.masters.get(name, parameter.data).view(-1)[cut]
            weights.append(own if own.dtype == torch.float32 else scratch[1][place].copy_(own))
            first.append(self.first[name].view(-1)[cut])
            second.append(self.second[name].view(-1)[cut])
        if scale < 1.0:
            scratch[0][:at].mul_(scale)
        adamw(
            weights,
            grads,
            first,
            second,
            [],
            [
                torch.tensor(float(self.steps - self.missed.get(name, 0)), device=weight.device)
                for (name, _), weight in zip(pieces, weights, strict=True)
            ],
            fused=True,
            amsgrad=False,
            beta1=s.beta1,
            beta2=s.beta2,
            lr=lr,
            weight_decay=s.weight_decay if self.parameters[pieces[0][0]].ndim > 1 else 0.0,
            eps=s.eps,
            maximize=False,
        )
        if noise is not None:
            _round_stochastically(scratch[1][:at], noise[:at])
        for (name, cut), weight in zip(pieces, weights, strict=True):
            if self.parameters[name].dtype != torch.float32:
                self.parameters[name].data.view(-1)[cut] = weight

    def _noise(self) -> Tensor:
        """What stochastic rounding adds below the last bit kept: random for each weight, drawn anew for each step."""
        device = next(iter(self.parameters.values())).device
        generator = torch.Generator().manual_seed(counted_seed(0, "rounding", self.steps))
        return torch.randint(0, 1 << 16, (2 * AT_ONCE,), dtype=torch.int32, generator=generator).to(device)

    def drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"first": self.first, "second": self.second, "masters": self.masters}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Mapping[str, Tensor]], steps: int, missed: Mapping[str, int]) -> None:
        for group, mine in self.state_tensors().items():
            for name, tensor in mine.items():
                tensor.copy_(tensors[group][name])
        self.steps = steps
        self.missed = dict(missed)


def _round_stochastically(values: Float[Tensor, " weight"], noise: Int[Tensor, " weight"]) -> None:
    """Make fp32 values exact in bf16, in place: up with the probability by which they are nearer to the upper neighbour."""
    values.view(torch.int32).add_(noise).bitwise_and_(-(1 << 16))
