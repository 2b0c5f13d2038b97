"""How often a judge here agrees with people: held-out pairs of HH, each judged in both orders, by a rubric and by principles.

    python -m benchmarks.judge_accuracy [--data ../shared/data] [--pairs 300] [--longest 1600] [--principles 4]
        [--rubrics overall harmless] [--model HuggingFaceTB/SmolLM2-135M-Instruct]

Prints a Markdown table; writes benchmarks/results/judge_accuracy.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from truing.constitution.prefer import ask_principles
from truing.constitution.principles import read_constitution
from truing.judges import Comparison, Judgement, JudgePrompt
from truing.judges.bias import Judged, biases
from truing.recipes.feedback_model import LocalFeedback, model_of
from truing.recipes.selection import Selection
from truing.recipes.settings import Data
from truing.records import Preference, Prompt
from truing.statistics import Estimate, wilson, win_rate

RESULTS = Path(__file__).parent / "results"
HELD_OUT = 0.06
"""Share of HH that the other benchmarks hold out too."""

Judging = Callable[[Sequence[Comparison]], list[list[Judgement]]]
"""From pairs to the judgements that each has: one of a rubric, several of principles."""


def pairs(path: Path, most: int, longest: int) -> list[Preference]:
    """The first held-out pairs whose conversation with both answers has at most so many characters."""
    data = Data(path=str(path), on_bad_row="skip", held_out_share=HELD_OUT)
    found: list[Preference] = []
    for side, record in Selection(data=data, kinds=(Preference,)):
        assert isinstance(record, Preference)
        size = sum(len(m.content) for m in record.prompt) + len(record.chosen) + len(record.rejected)
        if side == "held_out" and size <= longest:
            found.append(record)
        if len(found) == most:
            break
    return found


def row(
    name: str, found: Sequence[Sequence[Judgement]], comparisons: Sequence[Comparison], probabilities: list[float]
) -> dict[str, object]:
    """Accuracies and biases; people's answer stands first in each comparison."""
    judged = [Judged(comparison=c, judgement=one) for c, of in zip(comparisons, found, strict=True) for one in of]
    soft = win_rate([1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in probabilities])
    clusters = [number for number, of in enumerate(found) for _ in of]
    measured = {figure.name: figure.value for figure in biases(judged, clusters=clusters)}
    figures: dict[str, Estimate] = {"accuracy": soft, **measured}
    sure = [p for p in probabilities if abs(p - 0.5) > 0.1]
    if sure:
        figures["accuracy where sure"] = wilson(sum(p > 0.5 for p in sure), len(sure))
    return {"name": name, "figures": {key: asdict(value) for key, value in figures.items()}}


def table(rows: Sequence[dict[str, object]]) -> str:
    """One line a way of judging."""
    names = ("accuracy", "accuracy where sure", "position", "flips", "length")
    lines = ["| judged by | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for one in rows:
        figures = one["figures"]
        assert isinstance(figures, dict)
        cells = []
        for name in names:
            e = figures.get(name)
            cells.append(
                "-" if e is None else f"{100 * e['value']:.1f} [{100 * e['low']:.1f}, {100 * e['high']:.1f}], n = {e['n']}"
            )
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--longest", type=int, default=1600, help="characters of a conversation with both answers")
    parser.add_argument("--principles", type=int, default=4, help="that judge each pair; 0 leaves them out")
    parser.add_argument("--rubrics", nargs="*", default=["overall", "harmless"])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    args = parser.parse_args()
    began, cpu = time.monotonic(), time.process_time()
    held = pairs(args.data / "hh_rlhf" / "harmless-base.jsonl.gz", args.pairs, args.longest)
    comparisons = [Comparison(prompt=Prompt(messages=one.prompt), first=one.chosen, second=one.rejected) for one in held]
    feedback = LocalFeedback(model_of(args.model, "auto"))
    rows = []
    for rubric in args.rubrics:
        found = feedback.judge(JudgePrompt.of(rubric, "letter").rubric)(comparisons)
        rows.append(row(f"the rubric `{rubric}`", [[one] for one in found], comparisons, [one.probability for one in found]))
    constitution = read_constitution()
    verdicts = ask_principles(comparisons, constitution, feedback.judge, most=args.principles, seed=0) if args.principles else []
    said = [list(verdict.judgements.values()) for verdict in verdicts]
    for rule in ("priority", "average") if verdicts else ():
        decisions = [verdict.decision(constitution, rule, sure=0.1) for verdict in verdicts]
        probabilities = [0.5 if decision is None else decision.probability for decision in decisions]
        rows.append(row(f"{args.principles} principles, {rule}", said, comparisons, probabilities))
    longer = [1.0 if len(c.first) > len(c.second) else 0.5 if len(c.first) == len(c.second) else 0.0 for c in comparisons]
    rows.append({"name": "the longer answer, always", "figures": {"accuracy": asdict(win_rate(longer))}})
    print(table(rows))
    print(f"\n{len(held)} pairs, {time.monotonic() - began:.0f} s, {time.process_time() - cpu:.0f} CPU seconds")
    RESULTS.mkdir(exist_ok=True)
    report = {"model": args.model, "pairs": len(held), "rows": rows}
    (RESULTS / "judge_accuracy.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
