"""Scalar heads on a language model: what turns the policy's backbone into a reward model or a critic."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from truing.data.tree import TreeBatch
from truing.models.lora import adapter_on
from truing.models.policy import Policy
from truing.randomness import counted_seed


class RewardModel(nn.Module):
    """r(x, y): a linear head, in fp32, on the hidden state of the response's last token; or one for each member of an ensemble.

    A head's weight starts as N(0, 1/(d+1)), its bias as 0 (Stiennon et al. 2020, arXiv 2009.01325; Huang et al. 2024, arXiv
    2403.17031). Members share one base: each reads it under an adapter of its own, or all read the same hidden state.
    """

    def __init__(self, policy: Policy, *, seed: int = 0, members: int = 1, adapters: Sequence[str] = ()) -> None:
        super().__init__()
        assert len(adapters) in (0, members), "one adapter a member, or none"
        self.policy = policy
        self.adapters = tuple(adapters)
        """The adapter of the policy's model that each member stands on; empty where all read the model as it is in force."""
        self.head = nn.Linear(policy.width, members, device=policy.device, dtype=torch.float32)
        seeds = [counted_seed(seed, "reward head", *((member,) if member else ())) for member in range(members)]
        rows = [torch.randn(policy.width, generator=torch.Generator().manual_seed(one)) for one in seeds]
        with torch.no_grad():
            self.head.weight.copy_(torch.stack(rows) * (policy.width + 1) ** -0.5)
            self.head.bias.zero_()
        # Every comparison cancels the bias: its gradient is rounding noise, which Adam would turn into steps of full size.
        self.head.bias.requires_grad_(False)

    @property
    def members(self) -> int:
        """How many rewards an answer has."""
        return self.head.out_features

    def scores(self, batch: TreeBatch) -> Float[Tensor, " response"]:
        """The reward of each response, of an ensemble the members' mean."""
        return self.member_scores(batch).mean(0)

    def member_scores(self, batch: TreeBatch, members: Sequence[int] | None = None) -> Float[Tensor, "member response"]:
        """What the members say of each response, all or those that are named; one pass for each adapter that they stand on."""
        hidden: dict[str | None, Tensor] = {}
        rows = []
        for member in range(self.members) if members is None else members:
            name = self.adapters[member] if self.adapters else None
            if name not in hidden:
                with nullcontext() if name is None else adapter_on(self.policy.model, name):
                    hidden[name] = self.policy.final_hidden(batch).float()
            own = slice(member, member + 1)
            rows.append(nn.functional.linear(hidden[name], self.head.weight[own], self.head.bias[own]).squeeze(-1))
        return torch.stack(rows)

    def step_scores(self, batch: TreeBatch, ends: Sequence[Sequence[int]]) -> Float[Tensor, " step"]:
        """What the first head says of each step, read at the tokens at these places of each response: one list a response."""
        firsts = [begin for span in batch.spans for begin, _ in span.branches]
        at = [first + end for first, of_response in zip(firsts, ends, strict=True) for end in of_response]
        response = [number for number, of_response in enumerate(ends) for _ in of_response]
        places, numbers = (torch.tensor(row, dtype=torch.long, device=batch.last.device) for row in (at, response))
        with adapter_on(self.policy.model, self.adapters[0]) if self.adapters else nullcontext():
            hidden = self.policy.hidden(batch, places, numbers).float()
        return nn.functional.linear(hidden, self.head.weight[:1], self.head.bias[:1]).squeeze(-1)

    def head_tensors(self) -> dict[str, Tensor]:
        """What a saved reward model has beside its backbone."""
        return {"weight": self.head.weight.detach(), "bias": self.head.bias.detach()}

    @torch.no_grad()
    def load_head(self, tensors: Mapping[str, Tensor]) -> None:
        self.head.weight.copy_(tensors["weight"])
        self.head.bias.copy_(tensors["bias"])

    @torch.no_grad()
    def centre(self, means: Float[Tensor, " member"]) -> None:
        """Shift rewards so that what scored `means` scores 0: their zero is then the demonstrations (arXiv 2009.01325)."""
        self.head.bias.sub_(means)


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

    def values_and_after(self, batch: TreeBatch) -> tuple[Float[Tensor, " scored"], Float[Tensor, " response"]]:
        """The same, and V of the state behind each response's last token, which a cut one would have gone on to: in one pass."""
        ends = torch.arange(batch.responses, device=batch.last.device)
        values = self._read(batch, torch.cat([batch.source, batch.last]), torch.cat([batch.response, ends]))
        return values[: len(batch.source)], values[len(batch.source) :]

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

    def begin_round(self) -> None:
        """What the layers beneath all adapters say of this round's answers is kept from now on (`truing.models.lower_layers`)."""
        if self.policy.lower:
            self.policy.lower.begin()

    def end_round(self) -> None:
        """The answers have been learnt from: it is let go."""
        if self.policy.lower:
            self.policy.lower.end()
