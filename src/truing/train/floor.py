"""The least time that a step can take: its products with the weights at the rate that this machine multiplies matrices at.

Two operations a parameter and token going forward and four going back; where adapters are trained and the rest passes gradients on,
two going back, none below the lowest adapter, and six for the adapters' own. A prompt counts once for its responses, the LM head
for scored tokens alone, and all else (attention, norms, passes without gradient, optimizer) as nothing: it is what the share of the
floor is lost to. Of mixtures of experts only what every token goes through counts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from truing.data.tree import TreeBatch
from truing.models.lower_layers import LowerLayers
from truing.models.policy import Policy

REPEATS = 4
OPERATIONS = 1 << 31
"""Of one product that is timed on a processor, about; a GPU would not wake up for it."""
ROWS_ON_GPU = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Example: `Floor.of(policy).operations(batches) / floor.rate` are the seconds that a step takes at least."""

    body: int
    """Parameters of the layers' matrices."""
    head: int
    """Parameters of the LM head; 0 for a reward model, which has none."""
    adapters: int | None
    """Parameters of trained adapters while the rest is frozen; None when all is trained."""
    beneath: int
    """Parameters of the layers' matrices below the lowest adapter, through which no gradient flows."""
    rate: float
    """Operations a second of products in the model's dtype, measured when this was made."""

    @classmethod
    def of(cls, model: nn.Module) -> "Floor":
        """Counts a policy's parameters, or a reward model's, and measures the rate: well under a second."""
        policy = model if isinstance(model, Policy) else next(part for part in model.modules() if isinstance(part, Policy))
        embeddings = {id(part.weight) for part in policy.modules() if isinstance(part, nn.Embedding)} | {id(policy.head_weight)}
        matrices = {name: weight for name, weight in policy.named_parameters() if weight.ndim == 2 and id(weight) not in embeddings}
        base = [weight for name, weight in matrices.items() if "lora_" not in name]
        adapters = [weight for name, weight in matrices.items() if "lora_" in name and weight.requires_grad]
        frozen = not any(weight.requires_grad for weight in base)
        beneath = _beneath(policy)
        return cls(
            body=sum(weight.numel() for weight in base),
            head=policy.head_weight.numel() if policy is model else 0,
            adapters=sum(weight.numel() for weight in adapters) if frozen else None,
            beneath=sum(weight.numel() for weight in base if id(weight) in beneath) if frozen else 0,
            rate=_measured(max(base, key=lambda weight: weight.numel())),
        )

    def operations(self, batches: Sequence[TreeBatch]) -> float:
        """Useful operations of training on these micro-batches once."""
        tokens = sum(tree.size for batch in batches for tree in batch.trees)
        forward = 2.0 * (self.body * tokens + self.head * sum(len(batch.target) for batch in batches))
        return 3 * forward if self.adapters is None else 2 * forward + (6.0 * self.adapters - 2.0 * self.beneath) * tokens


def _beneath(policy: Policy) -> set[int]:
    """The weights of the layers below the lowest adapter, by identity."""
    lower = LowerLayers.of(policy.model)
    return {id(weight) for layer in lower.layers for weight in layer.parameters()} if lower else set()


@torch.no_grad()
def _measured(like: torch.Tensor) -> float:
    """Operations a second of a layer's three products, forward and both gradients, with a matrix of this shape."""
    out, width = like.shape
    on_gpu = like.device.type == "cuda"
    rows = ROWS_ON_GPU if on_gpu else max(64, min(1024, OPERATIONS // (2 * out * width)))
    generator = torch.Generator().manual_seed(0)  # its own: what is random in the run is not to depend on this

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(like)

    weight, hidden, above, taken = random(out, width), random(rows, width), random(rows, out), []
    for _ in range(REPEATS):
        began = time.perf_counter()
        nn.functional.linear(hidden, weight)
        above @ weight
        above.T @ hidden
        if on_gpu:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 6.0 * out * width * rows / max(median(taken[1:]), 1e-9)  # the first warms up
