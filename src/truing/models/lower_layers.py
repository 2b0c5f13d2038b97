"""The layers beneath every adapter, computed once a round: policy, reference, critic and reward model share what they say.

Where only upper layers have adapters, all roles on one base begin with the same hidden states, in scoring as in every epoch of
learning. They are kept for each prompt and each answer, so it does not matter how these are packed into batches later (the shared
trunk of hydra models: Santacroce et al. 2023, arXiv 2309.00754).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from truing.data.tree import TreeBatch
from truing.models.layers import layers_of

ROOM = 1 << 28
"""Bytes that are kept; what does not fit is computed each time."""
Run = tuple[tuple[int, ...], ...]
"""A trunk, or a trunk and a branch: tokens whose hidden states depend on nothing else."""


class LowerLayers:
    """Example: `lower.begin()`, then every pass `with lower.once(batch): ...`, at last `lower.end()`."""

    def __init__(self, layers: Sequence[nn.Module], *, room: int = ROOM) -> None:
        self.layers = list(layers)
        """They stand beneath whatever is trained; the last of them says what is kept."""
        self.room = room
        self.kept: dict[Run, Float[Tensor, "token width"]] = {}
        self.bytes = 0
        self.keeping = False
        self._adapted: list[LoraLayer] = []

    @classmethod
    def of(cls, model: PreTrainedModel) -> "LowerLayers | None":
        """The layers of a model beneath the first that is trained; None where there are none, or not layers alone are trained."""
        layers = layers_of(model)
        first = next((number for number, layer in enumerate(layers) if _trained(layer)), 0)
        above = {name for layer in layers[first:] for name in _trained(layer)}
        return cls(layers[:first]) if first and _trained(model) <= above else None

    def begin(self) -> None:
        """A new round: what was kept is forgotten."""
        self.end()
        self.keeping = True
        # asked anew: a reward model's adapters may have come after those that are trained
        self._adapted = [module for layer in self.layers for module in layer.modules() if isinstance(module, LoraLayer)]

    def end(self) -> None:
        """The round is over; until the next nothing is kept."""
        self.kept.clear()
        self.bytes = 0
        self.keeping = False

    @contextmanager
    def once(self, batch: TreeBatch) -> Iterator[None]:
        """Around a forward pass of the batch as trees: the layers stand still where all of it is known, else are listened to."""
        if not self.keeping or self._changed():
            yield
            return
        known = self._known(batch)
        if known is None:
            heard: list[Tensor] = []
            hook = self.layers[-1].register_forward_hook(lambda _module, _inputs, output: heard.append(output))
            try:
                yield
            finally:
                hook.remove()
            self._keep(batch, heard)
            return
        with ExitStack() as stack:
            for layer in self.layers[:-1]:
                stack.enter_context(_saying(layer, lambda given: given))
            stack.enter_context(_saying(self.layers[-1], lambda given: known.view_as(given)))
            yield

    def _changed(self) -> bool:
        """Whether an adapter is in force that stands in one of these layers."""
        return any(
            not layer.disable_adapters and any(name in layer.lora_A for name in layer.active_adapters) for layer in self._adapted
        )

    def _known(self, batch: TreeBatch) -> Float[Tensor, "token width"] | None:
        """What is kept of the batch's tokens, as they are laid out there; None where something is missing."""
        runs = [run for _, run in _runs(batch)]
        if not all(run in self.kept for run in runs):
            return None
        root = self.kept[runs[0]][: batch.root]
        return torch.cat([root, *(self.kept[run][batch.root if len(run) == 1 else 0 :] for run in runs)])

    def _keep(self, batch: TreeBatch, heard: Sequence[Any]) -> None:
        if [type(said) for said in heard] != [Tensor] or heard[0].shape[:2] != (1, len(batch.tokens)):
            return  # a layer that says more than its tokens' states
        states = heard[0].detach()[0]
        for (start, end), run in _runs(batch):
            own = torch.cat([states[: batch.root if len(run) == 1 else 0], states[start:end]])
            if run not in self.kept and self.bytes + own.nbytes <= self.room:
                self.kept[run] = own
                self.bytes += own.nbytes


def _trained(module: nn.Module) -> set[int]:
    """The parameters that are trained, by their identity."""
    return {id(parameter) for parameter in module.parameters() if parameter.requires_grad}


def _runs(batch: TreeBatch) -> Iterator[tuple[tuple[int, int], Run]]:
    """Where each trunk (behind the root) and each branch lies, and what is kept of it by."""
    for tree, span in zip(batch.trees, batch.spans, strict=True):
        yield span.trunk, (tree.trunk,)
        for place, branch in zip(span.branches, tree.branches, strict=True):
            yield place, (tree.trunk, branch.tokens)


@contextmanager
def _saying(layer: nn.Module, says: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The layer says this of the states that it is given, instead of what it would."""
    before = vars(layer).get("forward")
    layer.forward = lambda hidden_states, *_args, **_options: says(hidden_states)
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before
