"""The layers of a language model, by what they are and not by their names."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def layers_of(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The layers from the embeddings up; empty where the model does not list them."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)  # a tower of images has layers of its own
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return next((list(layers) for layers in lists if all(isinstance(one, GradientCheckpointingLayer) for one in layers)), [])
