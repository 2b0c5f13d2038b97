"""Extraction, rules, the sandbox and votes against labels that others published: nightly, on files that are named or found.

    python -m benchmarks.published_labels [--data ../shared/data] [--gsm8k FILE] [--xstest FILE ...] [--votes FILE]

| file | where it is looked for | where it comes from |
|---|---|---|
| example_model_solutions.jsonl | DATA/gsm8k/ | grade_school_math/data of the repository openai/grade-school-math |
| xstest_v2_completions_*.csv | DATA/xstest/ | model_completions of paul-rottger/exaggerated-safety |
| human_judgments.json | DATA/mt_bench/ | votes of lmsys/mt_bench_human_judgments, both splits as one JSON list |

A check whose file is nowhere says where to put it. Prints one line a check; writes benchmarks/results/published_labels.json.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from truing.evals.human_agreement import mt_bench_agreement
from truing.evals.tasks.files import Files
from truing.evals.tasks.gsm8k import extract
from truing.evals.tasks.humaneval import HumanEval
from truing.evals.tasks.task import Said
from truing.evals.tasks.xstest import Reply, agreement
from truing.statistics import Estimate, shown, wilson

RESULTS = Path(__file__).parent / "results" / "published_labels.json"
PEOPLE: dict[str, Reply] = {"1_full_compliance": "complies", "2_full_refusal": "refuses", "3_partial_refusal": "partly refuses"}
"""XSTest's labels."""


VOTES = {
    "gpt4-pair and people, S1": (("gpt4-pair", "human", "S1"), 0.66),
    "gpt4-pair and people, S2": (("gpt4-pair", "human", "S2"), 0.85),
    "people among themselves, S1": (("human", "human", "S1"), 0.63),
    "people among themselves, S2": (("human", "human", "S2"), 0.81),
}
"""The paper's table 5, first turn: two groups and the setup, and the published share."""


def gsm8k(path: Path) -> Estimate:
    """Whether the flexible extraction of a solution equals that of the truth exactly where the label says so."""
    same, n = 0, 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        truth = extract(row["ground_truth"], "flexible")
        for solution in (value for value in row.values() if isinstance(value, dict)):
            same += (extract(solution["solution"], "flexible") == truth) == solution["is_correct"]
            n += 1
    return wilson(same, n)


def humaneval(data: Path) -> Estimate:
    """The published solutions that pass in the sandbox."""
    files, task = Files(root=data, hub=False), HumanEval()
    solutions = [item.text("canonical_solution") for item in files.items("humaneval/HumanEval.jsonl.gz")]
    judged = [
        task.judge(asked, [Said(turns=(solution,), finished=True)])
        for asked, solution in zip(task.prompts(files), solutions, strict=True)
    ]
    return wilson(sum(row["score"] for row in judged), len(judged))


def xstest(path: Path) -> Estimate:
    """The rule against two people's final label."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return agreement([row["completion"] for row in rows], [PEOPLE[row["final_label"]] for row in rows])


def votes(path: Path) -> dict[str, Estimate]:
    """MT-bench's agreement of judges and people, first turn, beside which the paper's percentages stand."""
    given: list[dict[str, Any]] = json.loads(path.read_text())
    return {
        f"{name}; published {share:.0%}": mt_bench_agreement(given, first, second, setup=setup, turn=1)  # type: ignore[arg-type]
        for name, ((first, second, setup), share) in VOTES.items()
    }


def found(named: Path | None, place: Path) -> Path | None:
    """The file that was named, or the one where it is looked for."""
    return named or (place if place.is_file() else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Every check whose data are here; of the others, where their data belong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--xstest", type=Path, nargs="+", default=[])
    parser.add_argument("--votes", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    shares: dict[str, Estimate] = {}
    solutions = args.data / "gsm8k" / "example_model_solutions.jsonl"
    judged = args.data / "mt_bench" / "human_judgments.json"
    if path := found(args.gsm8k, solutions):
        shares["GSM8K, flexible extraction against labels"] = gsm8k(path)
    else:
        print(f"GSM8K: not checked, there is no {solutions}; put it there, or name it by --gsm8k")
    if (args.data / "humaneval").is_dir():
        shares["HumanEval, published solutions that pass"] = humaneval(args.data)
    else:
        print(f"HumanEval: not checked, there is no {args.data / 'humaneval' / 'HumanEval.jsonl.gz'}")
    completions = args.xstest or sorted((args.data / "xstest").glob("xstest_v2_completions_*.csv"))
    shares |= {f"XSTest, rule against people, {path.stem}": xstest(path) for path in completions}
    if not completions:
        print(f"XSTest: not checked, there are no {args.data / 'xstest' / 'xstest_v2_completions_*.csv'}")
    if path := found(args.votes, judged):
        shares |= {f"MT-bench, {name}": share for name, share in votes(path).items()}
    else:
        print(f"MT-bench's votes: not checked, there is no {judged}; put it there, or name it by --votes")
    for name, share in shares.items():
        print(f"{name}: {100 * share.value:.2f}% [{100 * share.low:.2f}, {100 * share.high:.2f}], n = {share.n}")
    args.results.parent.mkdir(exist_ok=True)
    args.results.write_text(json.dumps({name: shown(share) for name, share in shares.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
