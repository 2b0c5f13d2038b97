"""HumanEval (Chen et al. 2021, arXiv 2107.03374): functions from their docstrings, run against tests; pass@k without bias.

The programs run in `truing.evals.sandbox`. A program that cannot be confined is not run: the error says what the machine lacks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from truing.evals.sandbox.run import Limits, execute
from truing.evals.tasks.files import Files, Hub
from truing.evals.tasks.task import Asked, Figures, Row, Said, Sampling, Unique
from truing.statistics import bootstrap_mean, wilson

ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function that is completed in plain style is over (section 2.1 of the paper, as in lm-eval)."""
BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class HumanEval:
    """One greedy answer a problem, or `samples` of them for pass@k."""

    samples: Annotated[int, Field(gt=0)] = 1
    """Answers a problem; one is greedy, more are drawn."""
    k: tuple[int, ...] = (1,)
    """The k of pass@k, none above samples."""
    temperature: Annotated[float, Field(gt=0)] = 0.8
    """Of the draws, where there are more than one."""
    max_tokens: Annotated[int, Field(gt=0)] = 512
    """Longest answer."""
    seconds: Annotated[int, Field(gt=0)] = 3
    """Processor time of a program."""

    def __post_init__(self) -> None:
        if not self.k or not all(1 <= k <= self.samples for k in self.k):
            raise ValueError(f"pass@k for k = {list(self.k)} needs 1 <= k <= samples, which is {self.samples}; draw more samples")

    def sampling(self) -> Sampling:
        """Greedy for one sample."""
        temperature = 0.0 if self.samples == 1 else self.temperature
        return Sampling(max_tokens=self.max_tokens, until=ENDS, samples=self.samples, temperature=temperature, style="plain")

    def prompts(self, files: Files) -> list[Asked]:
        """From HumanEval.jsonl.gz."""
        unique = Unique("humaneval")
        hub = Hub(name="openai/openai_humaneval", split="test")
        return [
            Asked(
                key=unique(item.text("task_id"), item.place),
                turns=(item.text("prompt"),),
                row={name: item.text(name) for name in ("prompt", "test", "entry_point")},
            )
            for item in files.items("humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl", hub=hub)
        ]

    def judge(self, asked: Asked, said: Sequence[Said]) -> Row:
        """Runs each answer against the problem's tests."""
        verdicts = [execute(program(asked, answer.turns[0]), Limits(cpu_seconds=self.seconds)) for answer in said]
        passed = sum(verdict.outcome == "passed" for verdict in verdicts)
        return {
            "key": asked.key,
            "score": pass_at_k(len(verdicts), passed, 1),
            "passed": passed,
            "samples": len(verdicts),
            "verdicts": [f"{verdict.outcome}: {verdict.detail}".rstrip(": ") for verdict in verdicts],
            "answers": [answer.turns[0] for answer in said],
        }

    def figures(self, rows: Sequence[Row], seed: int) -> Figures:
        """pass@k, the mean over problems of its unbiased estimate for each."""
        if self.samples == 1:
            return Figures(figures={"pass@1": wilson(sum(row["score"] for row in rows), len(rows))})
        estimates = {k: [pass_at_k(row["samples"], row["passed"], k) for row in rows] for k in self.k}
        return Figures(
            figures={f"pass@{k}": bootstrap_mean(values, seed=seed, bounds=(0.0, 1.0)) for k, values in estimates.items()}
        )


def pass_at_k(n: int, passed: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), equation 1 of the paper: the chance that one of k answers drawn from the n passes, c of which do.

    Example: `pass_at_k(6, 3, 1) == 0.4999999999999999`. Raises ValueError for fewer than k answers.
    """
    if not 1 <= k <= n or not 0 <= passed <= n:
        raise ValueError(f"pass@{k} of {n} answers of which {passed} pass; k must be 1 to {n}, and so many cannot pass")
    if n - passed < k:
        return 1.0
    product = 1.0
    for i in range(n - passed + 1, n + 1):
        product *= 1.0 - k / i
    return 1.0 - product


def program(asked: Asked, answer: str) -> str:
    """The problem, the answer and the tests as one program; of an answer with a block of code, the code.

    Code that defines the function anew follows the problem's own text, whose imports it may need.
    """
    row = asked.row
    block = BLOCK.search(answer)
    code = block[1] if block else answer
    if re.search(rf"^def {re.escape(row['entry_point'])}\b", code, re.MULTILINE):
        code = "    pass\n\n" + code
    return f"{row['prompt']}{code}\n\n{row['test']}\ncheck({row['entry_point']})\n"
