"""What draws the answers of a round: the settings, and from them the sampler; nothing of vLLM is loaded unless it is chosen."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from truing.endpoint import Endpoint
from truing.models.lora import LoRA
from truing.models.policy import Policy
from truing.models.resolve import resolve
from truing.parallel.world import World
from truing.rollouts.collect import LocalSampler, Sampler
from truing.rollouts.server import ServerSampler
from truing.rollouts.weights import LiveWeights

FOLDER = "sampler"
"""Where in the run's folder the weights stand that a sampler loads."""


@dataclass(frozen=True, kw_only=True)
class Local:
    """The policy itself draws, in this process: no second copy of its weights, and the same answers again after an interruption."""


@dataclass(frozen=True, kw_only=True)
class InVLLM:
    """vLLM draws, in this process (truing[vllm])."""

    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the GPU's memory that vLLM takes for weights and cache (gpu_memory_utilization)."""
    eager: bool = False
    """Whether it goes without captured graphs (enforce_eager): starts sooner, draws more slowly."""


@dataclass(frozen=True, kw_only=True)
class OnServer:
    """A server draws: `vllm serve`, or one that takes its requests."""

    endpoint: Endpoint
    """Where, and how patiently; endpoint.model is the model that training starts from, by its name there."""


DrawnBy = Local | InVLLM | OnServer
SAMPLERS: dict[str, type] = {"local": Local, "vllm": InVLLM, "server": OnServer}
"""Name -> settings of what draws answers."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What samplers outside the policy need to know of the run."""

    start: Path | str
    """The model that training starts from."""
    policy: Policy
    lora: LoRA | None
    tokenizer: PreTrainedTokenizerBase
    run: Path
    """The run's folder."""
    max_tokens: int
    """The longest prompt with its answer."""
    world: World


def sampler_of(choice: DrawnBy, drawing: Drawing, stack: ExitStack) -> Sampler:
    """The sampler itself; what must be ended is put on the stack. Raises ValueError where it cannot be had, with the remedy."""
    if isinstance(choice, Local):
        return LocalSampler(policy=drawing.policy)
    weights = LiveWeights(
        policy=drawing.policy,
        tokenizer=drawing.tokenizer,
        folder=drawing.run / FOLDER,
        lora=drawing.lora,
        base=str(drawing.start),
        world=drawing.world,
    )
    found: Any
    if isinstance(choice, OnServer):
        found = ServerSampler(endpoint=choice.endpoint, weights=weights)
    else:
        if drawing.world.size > 1:
            raise ValueError(f"sampler=vllm draws for one process, and there are {drawing.world.size}: set sampler=server")
        from truing.rollouts.vllm import VLLMSampler

        engine = {"gpu_memory_utilization": choice.memory_share, "enforce_eager": choice.eager}
        found = VLLMSampler(model=resolve(drawing.start), weights=weights, max_tokens=drawing.max_tokens, engine=engine)
    stack.callback(found.close)
    sampler: Sampler = found
    return sampler
