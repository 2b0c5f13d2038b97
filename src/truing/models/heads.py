"""Scalar heads on a language model: what turns the policy's backbone into a reward model or a critic."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from truing.data.tree import TreeBatch
from truing.models.lora import adapter_on
from truing.models.policy import Policy
from truing.randomness import counted_seed


class RewardModel(nn.Module):
    """r(x, y): a linear head, in fp32, on the hidden state of the response's last token.

    The head's weight starts as N(0, 1/(d+1)), its bias as 0 (Stiennon et al. 2020, arXiv 2009.01325; Huang et al. 2024, arXiv
    2403.17031).
    """

    def __init__(self, policy: Policy, *, seed: int = 0) -> None:
        super().__init__()
        self.policy = policy
        self.head = nn.Linear(policy.width, 1, device=policy.device, dtype=torch.float32)
        generator = torch.Generator().manual_seed(counted_seed(seed, "reward head"))
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(1, policy.width, generator=generator) * (policy.width + 1) ** -0.5)
            self.head.bias.zero_()
        # Every comparison cancels the bias: its gradient is rounding noise, which Adam would turn into steps of full size.
        self.head.bias.requires_grad_(False)

    def scores(self, batch: TreeBatch) -> Float[Tensor, " response"]:
        """The reward of each response."""
        rewards: Tensor = self.head(self.policy.final_hidden(batch).float()).squeeze(-1)
        return rewards

    def head_tensors(self) -> dict[str, Tensor]:
        """What a saved reward model has beside its backbone."""
        return {"weight": self.head.weight.detach(), "bias": self.head.bias.detach()}

    @torch.no_grad()
    def load_head(self, tensors: Mapping[str, Tensor]) -> None:
        self.head.weight.copy_(tensors["weight"])
        self.head.bias.copy_(tensors["bias"])

    @torch.no_grad()
    def centre(self, mean: float) -> None:
        """Shift rewards so that what scored `mean` scores 0: their zero is then the demonstrations (arXiv 2009.01325)."""
        self.head.bias.sub_(mean)


class ValueModel(nn.Module):
    """V(x, y_<t): a linear head, in fp32, on the hidden state that token t is predicted from.

    It starts at 0, which expects nothing, or as a reward model (Huang et al. 2024, arXiv 2403.17031, detail 10: `load_head`).
    """

    def __init__(self, policy: Policy, *, adapter: str | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.adapter = adapter
        """The adapter under which the shared base is a critic; None where the critic has weights of its own."""
        self.head = nn.Linear(policy.width, 1, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def values(self, batch: TreeBatch) -> Float[Tensor, " scored"]:
        """V of the state before each scored token."""
        return self._read(batch, batch.source, batch.response)

    def final_values(self, batch: TreeBatch) -> Float[Tensor, " response"]:
        """V of the state behind the last token of each response: what a cut response would have gone on to."""
        return self._read(batch, batch.last, torch.arange(batch.responses, device=batch.last.device))

    def _read(self, batch: TreeBatch, at: Tensor, response: Tensor) -> Tensor:
        with adapter_on(self.policy.model, self.adapter) if self.adapter else nullcontext():
            hidden = self.policy.hidden(batch, at, response)
        values: Tensor = self.head(hidden.float()).squeeze(-1)
        return values

    @torch.no_grad()
    def load_head(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a reward model's head."""
        self.head.weight.copy_(tensors["weight"])
        self.head.bias.copy_(tensors["bias"])


class ActorCritic(nn.Module):
    """A policy and, where the credit needs one, its critic: what policy optimisation trains.

    With adapters both stand on one base, each under an adapter of its own; without, the critic has weights of its own.
    """

    def __init__(self, policy: Policy, critic: ValueModel | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
