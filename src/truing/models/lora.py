"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), by peft: added, switched off, merged.

The adapter has the base's dtype while training (the optimizer keeps fp32 masters); merging is done in fp32, because a bf16 weight
swallows most of an update smaller than 1/256 of itself.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from truing.randomness import counted_seed


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Example: `LoRA(rank=16)` adds 16-dimensional updates to every linear layer but the head."""

    rank: Annotated[int, Field(gt=0)] = 16
    """Width of the update. Customary: 8 to 64."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank. Customary: rank to twice the rank."""
    targets: str = "all-linear"
    """Layers that get an adapter: all-linear, or a regular expression over module names."""


def add_lora(model: PreTrainedModel, lora: LoRA, *, seed: int) -> None:
    """Put adapters into the model in place and leave nothing but them trainable. They start as the identity (B = 0).

    Raises ValueError when `targets` matches no layer, naming it.
    """
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not names:  # GPT-2 writes its linear layers as Conv1D
        names = [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]
    if lora.targets != "all-linear":
        names = [name for name in names if re.search(lora.targets, name)]
    if not names:
        raise ValueError(
            f"lora.targets={lora.targets!r} matches no linear layer of {type(model).__name__}: use all-linear or a name like q_proj"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_seed(seed, "adapter"))
        alpha = cast(int, lora.alpha)  # so annotated, but only ever divided by the rank
        inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)


def has_lora(model: nn.Module) -> bool:
    """Whether adapters have been added."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters were added; without adapters, the model as it is."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in trainable:
            parameter.requires_grad_(True)  # switching adapters touches the flag


@torch.no_grad()
def merge(trained: PreTrainedModel, start: PreTrainedModel) -> PreTrainedModel:
    """Add the adapters of `trained` to the weights of `start` (the same model, without adapters, in fp32), in place."""
    modules = dict(start.named_modules())
    for name, layer in trained.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        weight: Tensor = modules[name].weight
        assert isinstance(layer, Linear)
        update = layer.get_delta_weight("default").float()
        weight += update if update.shape == weight.shape else update.T
    return start
