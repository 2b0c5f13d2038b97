"""Whether rejected answers are random rather than worse, asked of a model: is an answer likelier after its own prompt?

log pi(y|x) - log pi(y|x') for x' the prompt of another row: an answer to its own prompt gains from it, a random one does not. The
version without a model is `truing.quality.mismatched`.
"""

from collections.abc import Sequence

from truing.data.chat import ChatTokenizer, encode_all
from truing.data.problems import BadRow
from truing.data.read import iterate
from truing.evals.measures import response_log_probs
from truing.models.load import load_tokenizer
from truing.models.policy import Policy
from truing.quality.finding import Finding
from truing.quality.inspection import Settings
from truing.quality.mismatched import Kept, Mismatched, finding
from truing.quality.sample import Sample
from truing.recipes.fit import load_policy, model_folder
from truing.recipes.settings import torch_dtype
from truing.records import Message, Preference

PAIRS = 100
BUDGET = 2048


def by_likelihood(settings: Settings) -> Finding:
    """The finding on 100 pairs of a fair sample. Raises ValueError for data without two pairs that fit into `max_tokens`."""
    assert settings.model is not None
    gathered = Mismatched(seed=settings.seed)
    for item in iterate(settings.path, mapping=settings.mapping):
        if not isinstance(item, BadRow):
            gathered.see(Sample.of(item))
    pairs = gathered.kept.items[:PAIRS]
    start = model_folder(settings.model)
    chat = ChatTokenizer.of(load_tokenizer(start))
    policy, _ = load_policy(start, torch_dtype("auto"))
    own, other = (_log_probs(policy, chat, pairs, step, settings.max_tokens) for step in (0, 1))
    both = [i for i in range(len(pairs)) if i in own and i in other]
    if len(both) < 2:
        raise ValueError(f"{settings.path}: fewer than two pairs fit into max_tokens={settings.max_tokens}; raise it")
    fits = {
        side: [float(own[i][place] > other[i][place]) + 0.5 * (own[i][place] == other[i][place]) for i in both]
        for place, side in enumerate(("chosen", "rejected"))
    }
    return finding(fits, [pairs[i] for i in both], how="by likelihood", seed=settings.seed)


def _log_probs(policy: Policy, chat: ChatTokenizer, pairs: Sequence[Kept], step: int, max_tokens: int) -> dict[int, list[float]]:
    """log pi of both answers after the prompt `step` pairs on, by the pair's place; pairs that do not fit are absent."""
    records = [
        Preference(
            prompt=(Message(role="user", content=pairs[(i + step) % len(pairs)].prompt),),
            chosen=pair.chosen,
            rejected=pair.rejected,
        )
        for i, pair in enumerate(pairs)
    ]
    trees, _ = encode_all(records, chat, max_tokens=max_tokens)
    values = response_log_probs(policy, trees, budget=BUDGET)
    return {tree.key: value for tree, value in zip(trees, values, strict=True)}
