"""Whether rejected answers are random rather than worse, asked of a model: is an answer likelier after its own prompt?

log pi(y|x) - log pi(y|x') for x' another prompt, whole conversations both: an answer to its own prompt gains from it, a random one
does not. The version without a model is `truing.quality.mismatched`.
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
from truing.records import Messages, Preference

PAIRS = 100
BUDGET = 2048


def by_likelihood(settings: Settings) -> Finding:
    """The finding on a fair sample of 100 pairs. Raises ValueError for data of one prompt alone, and for data without two pairs
    that fit into `max_tokens`."""
    assert settings.model is not None
    gathered = Mismatched(seed=settings.seed, kept=PAIRS)
    for item in iterate(settings.path, mapping=settings.mapping):
        if not isinstance(item, BadRow):
            gathered.see(Sample.of(item))
    pairs = gathered.kept.items
    elsewhere = other_prompts([pair.messages for pair in pairs])
    if elsewhere is None:
        raise ValueError(f"{settings.path}: holds no two pairs of different prompts to compare; leave model out")
    start = model_folder(settings.model)
    chat = ChatTokenizer.of(load_tokenizer(start))
    policy, _ = load_policy(start, torch_dtype("auto"))
    own, other = (
        _log_probs(policy, chat, pairs, prompts, settings.max_tokens) for prompts in ([pair.messages for pair in pairs], elsewhere)
    )
    both = [i for i in range(len(pairs)) if i in own and i in other]
    if len(both) < 2:
        raise ValueError(f"{settings.path}: fewer than two pairs fit into max_tokens={settings.max_tokens}; raise it")
    fits = {
        side: [float(own[i][place] > other[i][place]) + 0.5 * (own[i][place] == other[i][place]) for i in both]
        for place, side in enumerate(("chosen", "rejected"))
    }
    return finding(fits, [pairs[i] for i in both], how="by likelihood", seed=settings.seed)


def other_prompts(prompts: Sequence[Messages]) -> list[Messages] | None:
    """For each prompt the next that differs, around the end; None when all are one. Rows of one prompt often stand together."""
    found: list[Messages] = []
    for place, prompt in enumerate(prompts):
        there = next((other for other in (*prompts[place + 1 :], *prompts[:place]) if other != prompt), None)
        if there is None:
            return None
        found.append(there)
    return found or None


def _log_probs(
    policy: Policy, chat: ChatTokenizer, pairs: Sequence[Kept], prompts: Sequence[Messages], max_tokens: int
) -> dict[int, list[float]]:
    """log pi of both answers after these prompts, by the pair's place; pairs that do not fit are absent."""
    records = [
        Preference(prompt=prompt, chosen=pair.chosen, rejected=pair.rejected) for pair, prompt in zip(pairs, prompts, strict=True)
    ]
    trees, _ = encode_all(records, chat, max_tokens=max_tokens)
    values = response_log_probs(policy, trees, budget=BUDGET)
    return {tree.key: value for tree, value in zip(trees, values, strict=True)}
