"""Text out of conversations, whoever writes it: a policy in this process, or a server (vLLM is one) behind an endpoint.

Labelling, critique and revision ask a `Writer` and need not know which it is. Rollouts that are trained on need tokens with their
log-probabilities and come from `truing.rollouts.collect`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, runtime_checkable

from truing.data.chat import ChatTokenizer
from truing.endpoint import Ask, Client, Failed
from truing.models.policy import Policy
from truing.randomness import counted_seed
from truing.records import Prompt
from truing.rollouts.collect import LocalSampler, Question, collect
from truing.rollouts.sampler import Decoding
from truing.runs.canonical import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer. Example: `Said(text="Yes, it is on.", stop="end")`."""

    text: str
    """Without its end token; empty where there is a problem."""
    stop: Literal["end", "length"] | None
    """Whether the writer ended its turn or the limit did; None where there is a problem."""
    problem: str = ""
    """Why there is no answer; empty where there is one."""


@runtime_checkable
class Writer(Protocol):
    """Answers conversations. It never raises for one of them: that is a problem of one answer."""

    @property
    def name(self) -> str:
        """Who writes, for people."""
        ...

    @property
    def identity(self) -> str:
        """A hash of what decides the answers beside prompts and seed, for provenance."""
        ...

    def __call__(self, prompts: Sequence[Prompt], *, samples: int, seed: int) -> list[list[Said]]:
        """`samples` answers to each prompt, in their order; the same prompts and seed give the same again (a server may not)."""
        ...


@dataclass(frozen=True, kw_only=True)
class LocalWriter:
    """A policy in this process.

    Example: `LocalWriter(policy=policy, chat=chat, decoding=Decoding(temperature=1.0))(prompts, samples=4, seed=0)`.
    """

    policy: Policy
    chat: ChatTokenizer
    decoding: Decoding
    name: str = "the policy"
    weights: str = ""
    """A hash of the weights (`truing.models.load.weights_hash`), for provenance."""
    progress: Callable[[int, int], None] | None = None

    @property
    def identity(self) -> str:
        """Of weights, tokenizer with template, and decoding."""
        return digest([self.weights, self.chat.fingerprint, asdict(self.decoding)])

    def __call__(self, prompts: Sequence[Prompt], *, samples: int, seed: int) -> list[list[Said]]:
        """A prompt that does not leave the answer's room in the model's context is a problem of its answers."""
        trunks = [self.chat.prompt_tokens(prompt.messages) for prompt in prompts]
        most = self.policy.reach or getattr(self.policy.model.config.get_text_config(), "max_position_embeddings", None)
        room = None if most is None else most - self.decoding.max_tokens
        fits = [i for i, trunk in enumerate(trunks) if trunk and (room is None or len(trunk) <= room)]
        asked = [Question(number=i, prompt=prompts[i], trunk=trunks[i]) for i in fits]
        rollouts = collect(
            LocalSampler(policy=self.policy),
            asked,
            self.decoding,
            samples=samples,
            stop_ids=self.chat.stop_ids,
            decode=self.chat.decode,
            seed=seed,
            progress=self.progress,
        )
        found = {
            i: [Said(text=rollout.response.strip(), stop=rollout.completion.stop) for rollout in group]
            for i, group in zip(fits, rollouts, strict=True)
        }
        return [found[i] if i in found else [_too_long(len(trunk), room)] * samples for i, trunk in enumerate(trunks)]


@dataclass(frozen=True, kw_only=True)
class RemoteWriter:
    """A model behind an endpoint. Example: `RemoteWriter(client=Client(endpoint), decoding=Decoding(max_tokens=256))`."""

    client: Client
    decoding: Decoding
    progress: Callable[[int, int], None] | None = None

    @property
    def name(self) -> str:
        """As the endpoint's settings call the model."""
        return self.client.endpoint.model

    @property
    def identity(self) -> str:
        """Of the endpoint's address, the model's name there, and decoding: what the server holds is for the server to say."""
        return digest([self.client.endpoint.url, self.client.endpoint.model, asdict(self.decoding)])

    def __call__(self, prompts: Sequence[Prompt], *, samples: int, seed: int) -> list[list[Said]]:
        """Samples of a prompt are questions apart; an empty answer is one that the model gave, not a failure."""
        asks = [
            Ask(
                messages=prompt.messages,
                max_tokens=self.decoding.max_tokens,
                temperature=self.decoding.temperature,
                seed=counted_seed(seed, "write", number) % (1 << 31),
                place=number,
            )
            for prompt in prompts
            for number in range(samples)
        ]
        found = [
            Said(text="", stop=None, problem=str(reply))
            if isinstance(reply, Failed)
            else Said(text=reply.text.strip(), stop=reply.stop)
            for reply in self.client.ask(asks, progress=self.progress)
        ]
        return [found[start : start + samples] for start in range(0, len(found), samples)]


def _too_long(tokens: int, room: int | None) -> Said:
    return Said(text="", stop=None, problem=f"the prompt has {tokens} tokens, and the model's context leaves room for {room}")
