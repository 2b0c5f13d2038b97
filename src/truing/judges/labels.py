"""From ordered answers to records that are trained on, each with where it comes from. Plain functions, no files.

Who decided, when, in which orders it was shown, how sure it was, who wrote the answers, and hashes of prompt and models are tags of
the record: columns of the file that is written, never shown to a model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import mean
from typing import Annotated, Literal

from pydantic import Field

from truing.judges.ordering import Ordered, Pairing, mean_wins, prompt_hash
from truing.records import Demonstration, Feedback, Message, Preference, Ranking, Record

Form = Literal["best_worst", "pairs", "ranking", "feedback", "demonstrations"]


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What is written of answers in order. Example: `Labelling(form="pairs", margin=0.5)`."""

    form: Form = "best_worst"
    """The best against the worst answer (unless the judge sees these two otherwise), all pairs, a ranking, feedback on each answer,
    or the best as demonstrations."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Pairs nearer than this are left out: in rewards where a reward ordered, in probability above 0.5 where a judge did."""
    on_flip: Literal["tie", "drop", "average"] = "tie"
    """A pair that the judge sees otherwise in the other order: a tie, as if never asked, or the probability over both decides."""
    soft: bool = True
    """Whether a judged pair carries the judge's probability, which losses then take as a soft label; false writes hard ones."""
    keep: Annotated[int, Field(gt=0)] = 1
    """Demonstrations: how many of the best answers are kept (rejection sampling)."""
    threshold: float | None = None
    """Score from which an answer is desirable, or good enough to show; null is the mean of its prompt's answers (where all are
    worth the same nothing is written), or no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The records of one prompt, and what did not become one."""

    records: tuple[Record, ...]
    ties: int = 0
    """Pairs that were near, tied or turned round, so that none was written; such without a judgement are not among them."""


def records_of(ordered: Ordered, labelling: Labelling, *, at: str = "") -> Labelled:
    """The records of one prompt's answers. `at` is when they were ordered, as ISO 8601.

    Unfinished answers should not be among them (`Answered.of`): a file cannot say that an answer was cut.
    """
    ordered = settled(ordered, labelling.on_flip)
    if labelling.form in ("best_worst", "pairs"):
        ranked = ordered.ranked()
        wanted = [(ranked[0], ranked[-1])] if labelling.form == "best_worst" and len(ranked) > 1 else []
        if labelling.form == "pairs":
            wanted = list(combinations(ranked, 2))
        wanted = [(a, b) for a, b in wanted if not _unknown(ordered, a, b)]
        pairs = [_pair(ordered, a, b, labelling, at) for a, b in wanted]
        found = tuple(pair for pair in pairs if pair is not None)
        return Labelled(records=found, ties=len(pairs) - len(found))
    if labelling.form == "ranking":
        return _ranking(ordered, labelling, at)
    if labelling.form == "feedback":
        return _feedback(ordered, labelling, at)
    return Labelled(records=tuple(_demonstrations(ordered, labelling, at)))


def settled(ordered: Ordered, on_flip: Literal["tie", "drop", "average"]) -> Ordered:
    """The order once pairs that turned round count as said: half for each answer, not at all, or by the probability over both."""
    if not ordered.pairings or on_flip == "average":
        return ordered
    kept = tuple(one for one in ordered.pairings if not one.judgement.flips)
    halves = () if on_flip == "drop" else tuple(_half(one) for one in ordered.pairings if one.judgement.flips)
    scores = mean_wins((*kept, *halves), len(ordered.scores))
    return replace(ordered, pairings=kept if on_flip == "drop" else ordered.pairings, scores=scores)


def _half(pairing: Pairing) -> Pairing:
    return replace(pairing, judgement=replace(pairing.judgement, orders=(0.5, 0.5), decided=None))


def preference_of(pairing: Pairing, labelling: Labelling) -> tuple[int, int] | None:
    """Places of the better and the worse answer of a judged pair, None where it is no preference."""
    said = pairing.judgement
    if said.problem or (said.side == "tie" and labelling.on_flip != "average"):
        return None
    gap = said.probability - 0.5
    if gap == 0 or abs(gap) < labelling.margin:
        return None
    return (pairing.first, pairing.second) if gap > 0 else (pairing.second, pairing.first)


def _unknown(ordered: Ordered, a: int, b: int) -> bool:
    """Whether a judge was asked about the two and gave no judgement: missing, and counted as that."""
    pairing = ordered.pairing(a, b)
    return pairing is not None and bool(pairing.judgement.problem)


def _pair(ordered: Ordered, a: int, b: int, labelling: Labelling, at: str) -> Preference | None:
    """The preference between two answers of which the first has the higher score; None for a tie.

    The best and the worst by score are one only where the judge, asked about these two, does not say the reverse.
    """
    if ordered.pairings:
        pairing = ordered.pairing(a, b)
        places = None if pairing is None else preference_of(pairing, labelling)
        if labelling.form == "best_worst" and (places != (a, b) or ordered.scores[a] == ordered.scores[b]):
            places = None
    else:
        gap = ordered.scores[a] - ordered.scores[b]
        places = None if gap == 0 or gap < labelling.margin else (a, b)
    return None if places is None else preference(ordered, *places, at=at, soft=labelling.soft)


def preference(
    ordered: Ordered, better: int, worse: int, *, at: str = "", soft: bool = False, extra: Mapping[str, str] | None = None
) -> Preference:
    """A preference between two places with its provenance; `extra` tags stand over the usual ones."""
    answered = ordered.answered
    chosen, rejected = answered.answers[better], answered.answers[worse]
    tags = {
        **_common(ordered, at),
        "chosen_by": chosen.writer,
        "chosen_by_sha256": chosen.identity,
        "rejected_by": rejected.writer,
        "rejected_by_sha256": rejected.identity,
        "chosen_score": _number(ordered.scores[better]),
        "rejected_score": _number(ordered.scores[worse]),
    }
    pairing = ordered.pairing(better, worse)
    if pairing is not None:
        probabilities = (pairing.judgement.probability, *pairing.judgement.orders)
        for name, value in zip(("judged", "judged_shown_first", "judged_shown_second"), probabilities, strict=True):
            tags[name] = _number(value)
        if pairing.judgement.decided is not None:
            tags["decided_by"] = " ".join(pairing.judgement.decided.by)
            tags["conflicts"] = " ".join(f"{first}/{second}" for first, second in pairing.judgement.decided.conflicts)
    tags |= extra or {}
    return Preference(
        prompt=answered.prompt.messages,
        chosen=chosen.text,
        rejected=rejected.text,
        probability=pairing.judgement.probability if soft and pairing is not None and pairing.judgement.probability < 1 else None,
        origin=answered.prompt.origin,
        tags={name: value for name, value in tags.items() if value},
    )


def _common(ordered: Ordered, at: str) -> dict[str, str]:
    """Tags of every record. Earlier tags of the prompt stay."""
    return {
        **{name: value for name, value in ordered.answered.prompt.tags.items() if name != "shown"},
        "labelled_by": ordered.by,
        "labelled_by_sha256": ordered.identity,
        "labelled_at": at,
        "order_shown": "both" if ordered.pairings else "one at a time",
        "prompt_sha256": prompt_hash(ordered.answered.prompt.messages),
    }


def _single(ordered: Ordered, place: int, at: str) -> dict[str, str]:
    """Tags of a record of one answer."""
    answer = ordered.answered.answers[place]
    tags = {
        **_common(ordered, at),
        "written_by": answer.writer,
        "written_by_sha256": answer.identity,
        "score": _number(ordered.scores[place]),
    }
    return {name: value for name, value in tags.items() if value}


def _ranking(ordered: Ordered, labelling: Labelling, at: str) -> Labelled:
    """From the best down, each answer that is worse than the one before it by the margin: a ranking has no place for ties."""
    kept: list[int] = []
    ties = 0
    for place in ordered.ranked():
        gap = ordered.scores[kept[-1]] - ordered.scores[place] if kept else 1.0
        if kept and (gap == 0 or gap < labelling.margin):
            ties += 1
        else:
            kept.append(place)
    if len(kept) < 2:
        return Labelled(records=(), ties=ties)
    answered = ordered.answered
    tags = {
        **_common(ordered, at),
        "scores": " ".join(_number(ordered.scores[place]) for place in kept),
        "written_by": " | ".join(answered.answers[place].writer for place in kept),
        "written_by_sha256": " ".join(answered.answers[place].identity for place in kept).strip(),
    }
    record = Ranking(
        prompt=answered.prompt.messages,
        responses=tuple(answered.answers[place].text for place in kept),
        origin=answered.prompt.origin,
        tags={name: value for name, value in tags.items() if value.strip(" |")},
    )
    return Labelled(records=(record,), ties=ties)


def _feedback(ordered: Ordered, labelling: Labelling, at: str) -> Labelled:
    ranked = ordered.ranked()
    if not ranked or (labelling.threshold is None and len(ranked) < 2):
        return Labelled(records=())
    scores = [ordered.scores[place] for place in ranked]
    # `mean` is exact and rounded once: sums of floats put three rewards of 0.1 below their mean
    border = mean(scores) if labelling.threshold is None else labelling.threshold
    decided = [
        place
        for place, score in zip(ranked, scores, strict=True)
        if abs(score - border) >= labelling.margin and (labelling.threshold is not None or score != border)
    ]
    records = tuple(
        Feedback(
            prompt=ordered.answered.prompt.messages,
            response=ordered.answered.answers[place].text,
            desirable=ordered.scores[place] >= border,
            origin=ordered.answered.prompt.origin,
            tags=_single(ordered, place, at),
        )
        for place in decided
    )
    return Labelled(records=records, ties=len(ranked) - len(records))


def _demonstrations(ordered: Ordered, labelling: Labelling, at: str) -> Iterator[Demonstration]:
    """The best answers (rejection sampling; Touvron et al. 2023, arXiv 2307.09288, section 3.2.3)."""
    good = [p for p in ordered.ranked() if labelling.threshold is None or ordered.scores[p] >= labelling.threshold]
    for place in good[: labelling.keep]:
        answered = ordered.answered
        yield Demonstration(
            messages=(*answered.prompt.messages, Message(role="assistant", content=answered.answers[place].text)),
            origin=answered.prompt.origin,
            tags=_single(ordered, place, at),
        )


def _number(value: float) -> str:
    return f"{value:.6g}"
