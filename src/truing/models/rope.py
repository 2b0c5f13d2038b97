"""How far rotary position embeddings reach before their frequencies depend on what else is in the batch.

transformers takes the largest position of a whole batch to choose the frequencies of `longrope` (Ding et al. 2024, arXiv
2402.13753) and of dynamic scaling; the latter also remembers the longest batch so far. Packed or padded, one response past the
model's original length would change the numbers of all its neighbours. So such a model is used up to that length only, where its
frequencies are fixed.
"""

from transformers import PretrainedConfig


def reach_of(config: PretrainedConfig) -> int | None:
    """Tokens of prompt and response up to which no number depends on its neighbours; None where nothing ever does."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [of_layer for of_layer in rope.values() if isinstance(of_layer, dict)]
    reaches = []
    for kind in kinds:
        name = str(kind.get("rope_type", "default"))
        if "dynamic" in name:
            reaches.append(int(text.max_position_embeddings))
        elif name == "longrope":
            reaches.append(int(kind["original_max_position_embeddings"]))
    return min(reaches, default=None)


def refuse_beyond(reach: int | None, tokens: int, remedy: str) -> None:
    """Raises ValueError with the remedy where so many tokens pass the reach."""
    if reach is not None and tokens > reach:
        raise ValueError(
            f"{tokens} tokens of prompt and response: past {reach} this model takes other RoPE frequencies for a whole batch, so "
            f"that numbers would depend on what is computed together; {remedy}"
        )
