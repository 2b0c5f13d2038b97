"""A reward model that scores a comparison, and what is known of it: held-out pairs, and what it minds that does not matter."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from truing.data.chat import ChatTokenizer
from truing.evals.answers import pairs_scored, scored_by_model
from truing.evals.result import Evaluation, Setting, code_version
from truing.evals.reward_models import RewardModelReport, Scored, evaluate_reward_model
from truing.evals.robustness import REWRITINGS, Robust, rewritten, robust
from truing.evals.tasks.evaluate import Model
from truing.models.heads import RewardModel
from truing.recipes.held_prompts import Held, key_of
from truing.recipes.reward_folder import load_reward_model
from truing.records import Preference
from truing.runs.canonical import digest
from truing.runs.sinks import Sink, counted


class RewardScorer:
    """Loaded when it is first asked, since its scores may all be kept in the folder."""

    def __init__(self, place: str, model: Model, folder: Path, seed: int) -> None:
        self.place, self.model, self.folder, self.seed = place, model, folder, seed
        self._loaded: RewardModel | None = None

    def __call__(self) -> tuple[RewardModel, ChatTokenizer]:
        """The reward model and its tokenizer."""
        if self._loaded is None:
            self._loaded = load_reward_model(Path(self.place), self.model.dtype)
        return self._loaded, self.model.chat

    def scores(self, name: str, answers: Evaluation, held: Held, sinks: Sequence[Sink]) -> Evaluation:
        """The rewards of one model's answers."""
        progress = counted(sinks, f"{name}: rewards")
        return scored_by_model(answers, held.items, self, self.model.identity, self.folder, progress)

    def report(self, held: Held, sinks: Sequence[Sink]) -> RewardModelReport | None:
        """How well it orders the held-out pairs; None where what is held out are no pairs."""
        if not held.pairs:
            return None
        scored = self._scored(held, held.pairs, "on held-out pairs", sinks)
        return evaluate_reward_model(
            [
                Scored(
                    prompt=key_of(pair.prompt),
                    category=pair.tags.get("kind", ""),
                    chosen=chosen,
                    rejected=rejected,
                    chosen_text=pair.chosen,
                    rejected_text=pair.rejected,
                )
                for pair, (chosen, rejected) in zip(held.pairs, scored, strict=True)
            ],
            seed=self.seed,
        )

    def robustness(self, held: Held, most: int, sinks: Sequence[Sink]) -> list[Robust]:
        """Over the first so many pairs: both in each other's place, and rewritten; a rule that changes no pair is left out."""
        pairs = held.pairs[:most]
        if not pairs:
            return []
        before = dict(zip(map(_identity, pairs), self._scored(held, pairs, "before rewriting", sinks), strict=True))
        turned = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
        swapped = [(mine, other) for other, mine in self._scored(held, turned, "in the other place", sinks)]
        prompts = [key_of(pair.prompt) for pair in pairs]
        found = [robust("place", [before[_identity(pair)] for pair in pairs], swapped, prompts, seed=self.seed)]
        for name, rewrite in REWRITINGS.items():
            changed = [(pair, new[0]) for pair in pairs if (new := rewritten([pair], rewrite))]
            if changed:
                after = self._scored(held, [new for _, new in changed], f"rewritten: {name}", sinks)
                old = [before[_identity(pair)] for pair, _ in changed]
                found.append(robust(name, old, after, [key_of(pair.prompt) for pair, _ in changed], seed=self.seed))
        return found

    def _scored(self, held: Held, pairs: Sequence[Preference], what: str, sinks: Sequence[Sink]) -> list[tuple[float, float]]:
        """The rewards of the chosen and the rejected answer of each pair."""
        setting = Setting(
            task="pairs",
            model=self.place,
            weights=self.model.identity,
            data=held.file,
            data_sha256=digest([held.sha256, [_identity(pair) for pair in pairs]]),
            template=self.model.chat.fingerprint,
            decoding={},
            options={"dtype": str(self.model.dtype).removeprefix("torch.")},
            seeds={},
            code=code_version(),
        )
        progress = counted(sinks, f"the reward model {what}")
        rows = pairs_scored(pairs, self, setting, self.folder, progress).rows
        return [(row["chosen"], row["rejected"]) for row in rows]


def _identity(pair: Preference) -> tuple[str, str, str]:
    return key_of(pair.prompt), pair.chosen, pair.rejected
