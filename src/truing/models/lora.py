"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), by peft: added, switched off, merged.

The adapter has the base's dtype while training (the optimizer keeps fp32 masters); merging is done in fp32, because a bf16 weight
swallows most of an update smaller than 1/256 of itself.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
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

from truing.models.layers import layers_of
from truing.models.low_rank import shorten
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
    top_layers: Annotated[int, Field(gt=0)] | None = None
    """Only so many of the uppermost layers get adapters; null is all. Nothing flows back through those beneath, and policy
    optimisation computes them once a round for all its roles and epochs. Customary: a third to a half of the layers."""


POLICY, CRITIC = "default", "critic"
"""Names of adapters: a model has the first; one that is a critic too has both."""
BASE = ""
"""Stands among names of adapters for the model without any."""


def add_lora(model: PreTrainedModel, lora: LoRA, *, seed: int, name: str = POLICY) -> None:
    """Put adapters into the model in place and leave nothing but adapters trainable. They start as the identity (B = 0).

    A second one stands beside the first, which stays the one in force (`adapter_on`). Raises ValueError when `targets` matches no
    layer, naming it.
    """
    head, modules = model.get_output_embeddings(), dict(model.named_modules())
    plain = {module for layer in model.modules() if isinstance(layer, BaseTunerLayer) for module in layer.modules()}
    names = [
        place
        for place, module in modules.items()
        if (isinstance(module, nn.Linear) and module is not head and module not in plain) or isinstance(module, BaseTunerLayer)
    ]
    turned = not names
    if turned:  # GPT-2 writes its linear layers as Conv1D
        names = [place for place, module in modules.items() if type(module).__name__ == "Conv1D"]
    if lora.targets != "all-linear":
        names = [place for place in names if re.search(lora.targets, place)]
    if lora.top_layers is not None:
        upper = {module for layer in _uppermost(model, lora.top_layers) for module in layer.modules()}
        found, names = names, [place for place in names if modules[place] in upper]
        if found and not names:
            raise ValueError(
                f"lora.top_layers={lora.top_layers} and lora.targets={lora.targets!r} have no layer in common: raise the one, or"
                " take other targets"
            )
    if not names:
        raise ValueError(
            f"lora.targets={lora.targets!r} matches no linear layer of {type(model).__name__}: use all-linear or a name like q_proj"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_seed(seed, "adapter" if name == POLICY else f"{name} adapter"))
        alpha = cast(int, lora.alpha)  # so annotated, but only ever divided by the rank
        config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, fan_in_fan_out=turned)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*already.*peft_config.*")  # the second adapter is meant to be one
            inject_adapter_in_model(config, model, adapter_name=name)
    _ready(model)
    for place, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in place)
        if "lora_" in place:
            parameter.data = parameter.data.to(model.dtype)


def _uppermost(model: PreTrainedModel, count: int) -> Sequence[nn.Module]:
    layers = layers_of(model)
    if not layers:
        raise ValueError(f"lora.top_layers={count}: {type(model).__name__} does not list its layers; name them by lora.targets")
    return layers[-count:]


def adapter_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What one adapter is made of, by the place of its layer and A or B: what `attach` takes."""
    found = {}
    for place, layer in model.named_modules():
        if isinstance(layer, Linear) and name in layer.lora_A:
            for side, part in (("A", layer.lora_A[name]), ("B", layer.lora_B[name])):
                found[f"{place}.{side}"] = cast(Tensor, part.weight).detach()
    return found


@torch.no_grad()
def attach(model: PreTrainedModel, tensors: Mapping[str, Tensor], *, alpha: float, name: str) -> None:
    """Put a trained adapter into the model in place, frozen; what is trained and in force stays so (`adapter_on` puts it in force).

    Raises ValueError where it is not an adapter of this model.
    """
    places = {key.removesuffix(".A"): tensor.shape for key, tensor in tensors.items() if key.endswith(".A")}
    modules = dict(model.named_modules())
    unknown = [place for place in places if not isinstance(modules.get(place), nn.Linear | BaseTunerLayer)]
    if unknown or not places:
        raise ValueError(f"an adapter for {unknown[0] if unknown else 'no layer'}, which {type(model).__name__} does not have")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    (rank,) = {shape[0] for shape in places.values()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*already.*peft_config.*")
        config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=list(places), lora_dropout=0.0)
        inject_adapter_in_model(config, model, adapter_name=name)
    layers = {place: layer for place, layer in model.named_modules() if isinstance(layer, Linear)}
    for place in places:
        for side, part in (("A", layers[place].lora_A[name]), ("B", layers[place].lora_B[name])):
            value, weight = tensors[f"{place}.{side}"], cast(Tensor, part.weight)
            if weight.shape != value.shape:
                raise ValueError(f"an adapter of shape {list(value.shape)} for {place}, which takes {list(weight.shape)}")
            weight.data = value.to(model.dtype).to(model.device)
    _ready(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, alpha: float, name: str) -> None:
    """Give an adapter that is in the model already the values of a trained one: what it then adds to each layer is the same.

    Raises ValueError where the two differ in layers or rank; another alpha goes into B.
    """
    layers = {place: layer for place, layer in model.named_modules() if isinstance(layer, Linear) and name in layer.lora_A}
    places = {key.removesuffix(".A") for key in tensors if key.endswith(".A")}
    if places != set(layers):
        raise ValueError(f"only one of the two has an adapter at {min(places ^ set(layers))}: their lora.targets differ")
    for place, layer in layers.items():
        share = alpha / tensors[f"{place}.A"].shape[0] / layer.scaling[name]
        for side, part, factor in (("A", layer.lora_A[name], 1.0), ("B", layer.lora_B[name], share)):
            value, weight = tensors[f"{place}.{side}"], cast(Tensor, part.weight)
            if weight.shape != value.shape:
                raise ValueError(f"an adapter of shape {list(value.shape)} for {place}, which takes {list(weight.shape)}")
            weight.copy_(value.float() * factor)


def without_adapters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters beneath any adapters, under the names that they have where there are none."""
    return {name.replace(".base_layer", ""): value for name, value in model.named_parameters() if "lora_" not in name}


def _layers(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _ready(model: nn.Module) -> None:
    """Adapters that were just put in: the policy's is the one in force, and layers compute them the short way."""
    for layer in _layers(model):
        layer.set_adapter([POLICY])
        if isinstance(layer, Linear):
            shorten(layer)


def has_lora(model: nn.Module) -> bool:
    """Whether adapters have been added."""
    return bool(_layers(model))


@contextmanager
def adapter_on(model: nn.Module, name: str) -> Iterator[None]:
    """The model under another of its adapters, or without any (`BASE`)."""
    if name == BASE:
        with adapter_off(model):
            yield
        return
    layers = _layers(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.set_adapter([name])
    try:
        yield
    finally:
        for layer in layers:
            layer.set_adapter([POLICY])
        for parameter in trainable:
            parameter.requires_grad_(True)  # switching adapters touches the flag


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters were added; without adapters, the model as it is."""
    layers = _layers(model)
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


class AdaptersAsNow:
    """Puts the adapters of a module in force again that are when it is made: `with AdaptersAsNow(layer): ...`.

    For what is computed again going backward, when another adapter may be in force.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = _layers(module)
        self._names = self._in_force()
        self._before: tuple[list[list[str]], list[tuple[nn.Parameter, bool]]] = ([], [])

    def _in_force(self) -> list[list[str]]:
        return [list(layer.active_adapters) for layer in self._layers]

    def __enter__(self) -> None:
        flags = [
            (parameter, parameter.requires_grad) for layer in self._layers for parameter in cast(nn.Module, layer).parameters()
        ]
        self._before = self._in_force(), flags
        self._put(self._names)

    def __exit__(self, *_: object) -> None:
        names, flags = self._before
        self._put(names)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)  # switching adapters touches the flag

    def _put(self, names: Sequence[list[str]]) -> None:
        for layer, names_of in zip(self._layers, names, strict=True):
            layer.set_adapter(names_of)


@torch.no_grad()
def merge(trained: PreTrainedModel, start: PreTrainedModel) -> PreTrainedModel:
    """Add the adapters of `trained` to the weights of `start` (the same model, without adapters, in fp32), in place."""
    modules = dict(start.named_modules())
    for name, layer in trained.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        assert isinstance(layer, Linear)
        if POLICY not in layer.lora_A:
            continue
        weight: Tensor = modules[name].weight
        update = layer.get_delta_weight(POLICY).float()
        weight += update if update.shape == weight.shape else update.T
    return start
