"""A model behind an endpoint as a judge: a reply in the form of JSON, of which the field `verdict` alone counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truing.endpoint import Ask, Client, Failed, Reply
from truing.judges.judgement import Comparison, Judgement, Opinion, both_orders
from truing.judges.prompt import JudgePrompt
from truing.judges.verdict import REASONED, SCHEMA, read_verdict
from truing.randomness import counted_seed
from truing.runs.canonical import digest


@dataclass(frozen=True, kw_only=True)
class RemoteJudge:
    """Example: `RemoteJudge(client=Client(endpoint), prompt=JudgePrompt.of("overall", "structured"))([comparison])[0].side`."""

    client: Client
    prompt: JudgePrompt
    reasoning: bool = False
    """Whether the reply's form has a field for reasons before the verdict; take a template that asks for them."""
    samples: int = 1
    """Verdicts for each order; more than one need a temperature, and their share, drawn a little to 1/2, is the probability."""
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    progress: Callable[[int, int], None] | None = None

    @property
    def name(self) -> str:
        """As the endpoint's settings call the model."""
        return self.client.endpoint.model

    @property
    def identity(self) -> str:
        """Of the endpoint's address, the model's name there, wording and decoding."""
        place = [self.client.endpoint.url, self.client.endpoint.model]
        asked = [self.prompt.rubric, self.prompt.template, self.reasoning]
        return digest([place, asked, self.samples, self.temperature, self.max_tokens, self.seed])

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """Judgements of what was replied; an order whose verdict is missing in the end is a problem, never a tie."""
        return both_orders(self.opinions, comparisons)

    def opinions(self, shown: Sequence[Comparison]) -> list[Opinion]:
        """The verdict on the answer shown first, or the share of several, for each comparison in the order in which it is shown."""
        asks = [
            Ask(
                messages=self.prompt.messages(comparison),
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=counted_seed(self.seed, "judge", number) % (1 << 31),
                schema=REASONED if self.reasoning else SCHEMA,
                place=number,
            )
            for comparison in shown
            for number in range(self.samples)
        ]
        replies = self.client.ask(asks, check=read_verdict, progress=self.progress)
        groups = [replies[start : start + self.samples] for start in range(0, len(replies), self.samples)]
        return [_opinion(group) for group in groups]


def _opinion(replies: Sequence[Reply | Failed]) -> Opinion:
    failed = [reply for reply in replies if isinstance(reply, Failed)]
    if failed:
        return Opinion.none(str(failed[0]))
    verdicts = [read_verdict(reply.text) for reply in replies if isinstance(reply, Reply)]
    return Opinion(probability=_share([one.probability for one in verdicts]), reason=verdicts[0].reasoning)


def _share(verdicts: Sequence[float]) -> float:
    """One verdict is itself. To several, half a verdict for each answer is added (Jeffreys' prior): few are never certain."""
    return verdicts[0] if len(verdicts) == 1 else (sum(verdicts) + 0.5) / (len(verdicts) + 1)
