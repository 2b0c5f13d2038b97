"""MT-Bench (Zheng et al. 2023, arXiv 2306.05685): eighty questions of two turns, rated 1 to 10 by a judge, or compared in pairs.

Ratings: each turn by itself, with a reference answer where there is one; the mean over questions, turns of one question together.
Pairs: both orders are asked, and one side wins only where both orders agree; everything else is a tie (section 3.4 of the paper).
Answers are greedy, whatever the category.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from truing.data.problems import DataError
from truing.evals.tasks.files import Files
from truing.evals.tasks.task import Asked, Figures, Row, Said, Sampling, Unique
from truing.judges.choice import Chooser
from truing.judges.judgement import Comparison, Judgement, Opinion, both_orders
from truing.judges.marks import COMPARE, RATE, RATE_FORM, Judge, conversation, opinion, preferred, rating, with_reference
from truing.records import Message, Prompt
from truing.statistics import Estimate, bootstrap_mean, wilson, win_rate

RATINGS = tuple(map(str, range(1, 11)))


@dataclass(frozen=True, kw_only=True)
class MTBench:
    """Rated answers; the score is the mean rating over ten."""

    ask: Judge | Chooser
    """From a prompt to a reply that ends in [[rating]]; or who chooses among 1 to 10, whose mean is the rating."""
    max_tokens: Annotated[int, Field(gt=0)] = 1024
    """Longest answer of a turn."""

    def sampling(self) -> Sampling:
        """Greedy."""
        return Sampling(max_tokens=self.max_tokens)

    def prompts(self, files: Files) -> list[Asked]:
        """From question.jsonl and, where it is there, the file of reference answers."""
        references: dict[int, list[str]] = {}
        name = "mt_bench/reference_answers_gpt4.jsonl"
        for item in files.items(name) if files.find(name) else []:
            choice = item.array("choices")[0]
            references[item.whole("question_id")] = list(choice["turns"])
        unique = Unique("mt_bench")
        found = []
        for item in files.items("mt_bench/question.jsonl"):
            turns = item.array("turns")
            number = item.whole("question_id")
            reference = references.get(number, [])
            if reference and len(reference) != len(turns):
                raise DataError(f"{item.place}: {len(turns)} turns and {len(reference)} reference answers; each turn needs one")
            row = {"category": item.text("category"), "reference": reference}
            found.append(Asked(key=unique(str(number), item.place), turns=tuple(map(str, turns)), row=row))
        return found

    def judge_turn(self, asked: Asked, answers: tuple[str, ...], turn: int) -> tuple[float | None, str]:
        """The rating of one turn, and the judge's reply or why there is no rating."""
        reference = with_reference(tuple(asked.row["reference"])[: turn + 1])
        text = conversation(asked.turns[: turn + 1], answers[: turn + 1])
        if not isinstance(self.ask, Chooser):
            reply = self.ask(RATE.format(reference=reference, form=RATE_FORM, conversation=text))
            return rating(reply), reply
        form = self.ask.form.format(words=", ".join(RATINGS))
        (choice,) = self.ask([RATE.format(reference=reference, form=form, conversation=text)], RATINGS)
        if choice.problem:
            return None, choice.problem
        return sum(share * float(word) for share, word in zip(choice.shares, RATINGS, strict=True)), ""

    def judge(self, asked: Asked, said: Sequence[Said]) -> Row:
        """Every turn."""
        answers = said[0].turns
        judged = [self.judge_turn(asked, answers, turn) for turn in range(len(asked.turns))]
        ratings = [found for found, _ in judged]
        known = [value for value in ratings if value is not None]
        return {
            "key": asked.key,
            "score": sum(known) / len(known) / 10 if len(known) == len(ratings) else None,
            "ratings": ratings,
            "category": asked.row["category"],
            "answers": list(answers),
            "replies": [reply for _, reply in judged],
        }

    def figures(self, rows: Sequence[Row], seed: int) -> Figures:
        """Mean ratings of each turn and of all, and how many replies could be read; questions are the units."""
        figures: dict[str, Estimate] = {}
        pairs = [(row["key"], value) for row in rows for value in row["ratings"] if value is not None]
        if pairs:
            figures["rating"] = bootstrap_mean(
                [value for _, value in pairs], [key for key, _ in pairs], seed=seed, bounds=(1.0, 10.0)
            )
        for turn in range(max(len(row["ratings"]) for row in rows)):
            of_turn = [r["ratings"][turn] for r in rows if turn < len(r["ratings"]) and r["ratings"][turn] is not None]
            if of_turn:
                figures[f"rating, turn {turn + 1}"] = bootstrap_mean(of_turn, seed=seed, bounds=(1.0, 10.0))
        asked = sum(len(row["ratings"]) for row in rows)
        figures["replies with a rating"] = wilson(len(pairs), asked)
        lost = asked - len(pairs)
        return Figures(figures=figures, notes=(f"{lost} of {asked} replies hold no rating and are in no mean",) if lost else ())


def compare(judge: Judge, asked: Asked, first: Sequence[str], second: Sequence[str]) -> Row:
    """Two models' answers to one question in both orders: outcome 1 where both prefer the first, 0 the second, else a tie, 0.5."""
    reference = with_reference(tuple(asked.row["reference"]))
    replies: list[str] = []

    def ask(shown: Sequence[Comparison]) -> list[Opinion]:
        replies.extend(judge(COMPARE.format(reference=reference, first=one.first, second=one.second)) for one in shown)
        return [opinion(reply) for reply in replies]

    texts = [conversation(asked.turns, tuple(answers)) for answers in (first, second)]
    prompt = Prompt(messages=tuple(Message(role="user", content=turn) for turn in asked.turns))
    (found,) = both_orders(ask, [Comparison(prompt=prompt, first=texts[0], second=texts[1])])
    outcome = None if found.problem else {"first": 1.0, "second": 0.0, "tie": 0.5}[found.side]
    verdicts = [preferred(reply) for reply in replies]
    return {
        "key": asked.key,
        "outcome": outcome,
        "consistent": found.orders[0] == found.orders[1],
        "verdicts": verdicts,
        "replies": replies,
    }


def comparison_of(asked: Asked, first: Sequence[str], second: Sequence[str]) -> Comparison:
    """Two models' conversations over one question, as judges of two answers read them; right answers stand before the questions."""
    reference = with_reference(tuple(asked.row["reference"])).strip()
    system = (Message(role="system", content=reference),) if reference else ()
    prompt = Prompt(messages=(*system, *(Message(role="user", content=turn) for turn in asked.turns)))
    return Comparison(prompt=prompt, first=conversation(asked.turns, tuple(first)), second=conversation(asked.turns, tuple(second)))


def row_of(key: str, found: Judgement) -> Row:
    """A judgement as `pairwise` takes it."""
    outcome = None if found.problem else {"first": 1.0, "second": 0.0, "tie": 0.5}[found.side]
    return {"key": key, "outcome": outcome, "consistent": not found.problem and not found.flips, "problem": found.problem}


def pairwise(rows: Sequence[Row]) -> Figures:
    """Win rate of the first model with ties as half, and how often both orders agree."""
    read = [row for row in rows if row["outcome"] is not None]
    figures: dict[str, Any] = {}
    if read:
        figures["win rate"] = win_rate([row["outcome"] for row in read])
        figures["both orders agree"] = wilson(sum(row["consistent"] for row in read), len(read))
    lost = len(rows) - len(read)
    return Figures(figures=figures, notes=(f"{lost} of {len(rows)} questions have a reply without a verdict",) if lost else ())
