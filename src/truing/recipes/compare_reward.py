"""A reward model alone, without models to compare: how it orders what people have ordered, and what it minds."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from truing.evals import reward_text
from truing.evals.html import reward_page
from truing.recipes.compare_report import PAGE, write_report
from truing.recipes.held_prompts import Held, key_of
from truing.recipes.reward_scorer import RewardScorer
from truing.runs.sinks import Sink


def evaluate_alone(scorer: RewardScorer, held: Held, rewritten_pairs: int, out: Path, sinks: Sequence[Sink]) -> Path:
    """Measure and write; returns the folder."""
    report = scorer.report(held, sinks)
    assert report is not None, "held_rankings finds some"
    pairs = [(key_of(pair.prompt), pair.chosen, pair.rejected) for pair in held.pairs]
    again = len(pairs) - len(set(pairs))
    found = {
        "place": scorer.place,
        "file": held.file,
        "rows": len(held.ranked),
        "pairs_again": again,
        "reward_model_weights": scorer.model.identity,
        "bootstrap_seed": scorer.seed,
        "reward_model": asdict(report),
        "robustness": [asdict(change) for change in scorer.robustness(held, rewritten_pairs, sinks)],
    }
    said = found if not again else {**found, "file": f"{held.file} (pairs that stand there again and count again: {again})"}
    return write_report(out, found, reward_page(said), reward_text.text(said, out / PAGE))
