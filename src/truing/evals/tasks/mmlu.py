"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300): four answers, scored by the likelihood of their letter after worked examples.

The headline is the mean over questions, as lm-eval has it; the mean over the 57 subjects, the paper's, stands beside it.
Scoring the texts of the answers instead of their letters is another benchmark, and not this one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from truing.data.problems import DataError
from truing.evals.tasks.files import Files, Hub, Item
from truing.evals.tasks.task import Choices, Figures, Row, Unique, credit, finite
from truing.statistics import bootstrap_mean, win_rate

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", *LETTERS, "answer")


@dataclass(frozen=True, kw_only=True)
class MMLU:
    """Letters by likelihood."""

    shots: Annotated[int, Field(ge=0, le=5)] = 5
    """Worked examples before each question: the first so many of the subject's dev file, in its order."""
    subjects: tuple[str, ...] = ()
    """Only these subjects; none named means all."""

    def questions(self, files: Files) -> list[Choices]:
        """From mmlu.zip, from its unpacked CSV files, or from the hub."""
        test, dev = _split(files, "test"), _split(files, "dev")
        unknown = sorted(set(self.subjects) - set(test))
        if unknown:
            raise DataError(f"mmlu has no subject {unknown[0]}; choose of {', '.join(test)}")
        unique = Unique("mmlu")
        found: list[Choices] = []
        for subject in self.subjects or test:
            examples = dev.get(subject, [])
            if len(examples) < self.shots:
                raise DataError(f"mmlu: {subject} has {len(examples)} dev questions, and shots={self.shots} needs as many")
            title = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
            worked = "".join(f"{_asked(item)} {LETTERS[_gold(item)]}\n\n" for item in examples[: self.shots])
            found += [
                Choices(
                    key=unique(f"{subject}/{number}", item.place),
                    shots=title + worked,
                    text=_asked(item),
                    answers=tuple(f" {letter}" for letter in LETTERS),
                    row={"gold": _gold(item), "subject": subject},
                )
                for number, item in enumerate(test[subject])
            ]
        return found

    def judge(self, question: Choices, log_probs: Sequence[float]) -> Row:
        """Whether the right letter is the likeliest."""
        score = credit(finite(question, log_probs), question.row["gold"])
        return {"key": question.key, "score": score, "subject": question.row["subject"], "log_probs": list(log_probs)}

    def figures(self, rows: Sequence[Row], seed: int) -> Figures:
        """Accuracy over questions, and over subjects with each counting the same."""
        of_subject: dict[str, list[float]] = {}
        for row in rows:
            of_subject.setdefault(row["subject"], []).append(row["score"])
        means = [sum(scores) / len(scores) for scores in of_subject.values()]
        return Figures(
            figures={
                "accuracy": win_rate([row["score"] for row in rows]),
                "mean over subjects": bootstrap_mean(means, seed=seed, bounds=(0.0, 1.0)),
            },
            notes=("the interval of the mean over subjects is for other subjects like these",),
        )


def _split(files: Files, split: str) -> Mapping[str, list[Item]]:
    """Subject -> rows."""
    tables = files.tables("mmlu/mmlu.zip", f"data/{split}", f"_{split}.csv", COLUMNS)
    if tables:
        return tables
    found: dict[str, list[Item]] = {}
    for item in files.items(f"mmlu/{split}.parquet", f"mmlu/{split}.jsonl", hub=Hub(name="cais/mmlu", config="all", split=split)):
        choices = item.array("choices")
        if len(choices) != len(LETTERS):
            raise DataError(f"{item.place}: {len(choices)} choices, and {len(LETTERS)} are needed")
        cells = {"question": item.text("question"), "answer": item.cells.get("answer"), **dict(zip(LETTERS, choices, strict=True))}
        found.setdefault(item.text("subject"), []).append(Item(cells=cells, place=item.place))
    return found


def _asked(item: Item) -> str:
    answers = "\n".join(f"{letter}. {item.cells[letter]}" for letter in LETTERS)
    return f"{item.text('question').strip()}\n{answers}\nAnswer:"


def _gold(item: Item) -> int:
    """The place of the right answer, which files write as a letter and the hub as a number."""
    answer = item.cells.get("answer")
    if isinstance(answer, str) and answer.strip() in LETTERS:
        return LETTERS.index(answer.strip())
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(LETTERS):
        return answer
    raise DataError(f"{item.place}: the answer is {answer!r}; it must be one of {', '.join(LETTERS)}")
