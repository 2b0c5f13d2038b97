"""Extraction, rules and the sandbox against labels that others published: nightly, on files that are named or found.

    python -m benchmarks.published_labels [--data ../shared/data] [--gsm8k SOLUTIONS.jsonl] [--xstest COMPLETIONS.csv ...]

The first is example_model_solutions.jsonl of the repository openai/grade-school-math, the others lie in model_completions of
paul-rottger/exaggerated-safety. A check whose file is not named says so. Prints one line a check.
"""

import argparse
import csv
import json
from pathlib import Path

from truing.evals.tasks.files import Files
from truing.evals.tasks.gsm8k import extract
from truing.evals.tasks.humaneval import HumanEval
from truing.evals.tasks.task import Said
from truing.evals.tasks.xstest import Reply, agreement
from truing.statistics import wilson

PEOPLE: dict[str, Reply] = {"1_full_compliance": "complies", "2_full_refusal": "refuses", "3_partial_refusal": "partly refuses"}
"""XSTest's labels."""


def gsm8k(path: Path) -> str:
    """Whether the flexible extraction of a solution equals that of the truth exactly where the label says so."""
    same, n = 0, 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        truth = extract(row["ground_truth"], "flexible")
        for solution in (value for value in row.values() if isinstance(value, dict)):
            same += (extract(solution["solution"], "flexible") == truth) == solution["is_correct"]
            n += 1
    return f"GSM8K, flexible extraction against labels: {same} of {n}, {wilson(same, n)}"


def humaneval(data: Path) -> str:
    """The published solutions in the sandbox."""
    files, task = Files(root=data, hub=False), HumanEval()
    solutions = [item.text("canonical_solution") for item in files.items("humaneval/HumanEval.jsonl.gz")]
    judged = [
        task.judge(asked, [Said(turns=(solution,), finished=True)])
        for asked, solution in zip(task.prompts(files), solutions, strict=True)
    ]
    failed = [row["key"] for row in judged if not row["score"]]
    return f"HumanEval, published solutions that pass: {len(judged) - len(failed)} of {len(judged)}; failed: {failed}"


def xstest(path: Path) -> str:
    """The rule against two people's final label."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = agreement([row["completion"] for row in rows], [PEOPLE[row["final_label"]] for row in rows])
    return f"XSTest, rule against people, {path.stem}: {found}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--xstest", type=Path, nargs="+", default=[])
    args = parser.parse_args()
    print(gsm8k(args.gsm8k) if args.gsm8k else "GSM8K: not checked, no file named")
    print(humaneval(args.data) if (args.data / "humaneval").is_dir() else f"HumanEval: not checked, {args.data} has none")
    for path in args.xstest:
        print(xstest(path))
    if not args.xstest:
        print("XSTest: not checked, no file named")


if __name__ == "__main__":
    main()
