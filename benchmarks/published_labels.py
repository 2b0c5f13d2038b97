"""Extraction, rules, the sandbox and votes against labels that others published: nightly, on files that are named or found.

    python -m benchmarks.published_labels [--data ../shared/data] [--gsm8k FILE] [--ifeval FILE ...] [--xstest FILE ...]
        [--votes FILE ...]

| file | where it is looked for | where it comes from |
|---|---|---|
| example_model_solutions.jsonl | DATA/gsm8k/ | grade_school_math/data of the repository openai/grade-school-math |
| eval_results_strict.jsonl, eval_results_loose.jsonl | DATA/ifeval/ | written by IFEval's own evaluation_main.py |
| xstest_v2_completions_*.csv | DATA/xstest/ | model_completions of paul-rottger/exaggerated-safety |
| human_judgments.json | DATA/mt_bench/ | both splits of lmsys/mt_bench_human_judgments, as JSON list or lines |

A check whose file is nowhere is not at hand: it says where to put it, and fails nothing. Prints one line a check; writes
benchmarks/results/published_labels.json, in which a check that is not at hand now keeps what it last came to. Exits with 1 where a
share is below what is asked (`ENOUGH`), or one of MT-bench's is not the published one (`NEAR`), or not of as many pairs of votes.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from truing.data.problems import DataError
from truing.evals.human_agreement import Vote, mt_bench_agreement, read_vote
from truing.evals.tasks.files import Files, Item
from truing.evals.tasks.gsm8k import extract
from truing.evals.tasks.humaneval import HumanEval
from truing.evals.tasks.ifeval import IFEval, follows
from truing.evals.tasks.task import Said
from truing.evals.tasks.xstest import Reply, agreement
from truing.statistics import Estimate, shown, wilson

RESULTS = Path(__file__).parent / "results" / "published_labels.json"
PEOPLE: dict[str, Reply] = {"1_full_compliance": "complies", "2_full_refusal": "refuses", "3_partial_refusal": "partly refuses"}
"""XSTest's labels."""
ENOUGH = {
    "GSM8K, flexible extraction against labels": 0.999,
    "HumanEval, published solutions that pass": 1.0,
    "IFEval, flags of stored answers": 0.995,
}
"""Check -> the least share. XSTest's rule is measured, and nothing is asked of it."""
NEAR = 0.1
"""Points by which a share of MT-bench may lie beyond the whole percents that are published."""
VOTES = {
    ("gpt4-pair", "human", "S1", 1): (0.66, 1343),
    ("gpt4-pair", "human", "S2", 1): (0.85, 859),
    ("human", "human", "S1", 1): (0.63, 721),
    ("human", "human", "S2", 1): (0.81, 479),
    ("gpt4-pair", "human", "S1", 2): (0.66, 1325),
    ("gpt4-pair", "human", "S2", 2): (0.85, 864),
    ("human", "human", "S1", 2): (0.67, 707),
    ("human", "human", "S2", 2): (0.82, 474),
}
"""The paper's table 5: two groups, the setup and the turn, the published share, and of how many pairs of votes."""


def items(path: Path) -> list[Item]:
    """The rows of a file. Raises DataError naming file and row."""
    return Files(root=path.parent, hub=False).items(path.name)


def said(item: Item, column: str) -> str:
    """An answer, which may be empty."""
    found = item.cells.get(column)
    return found if isinstance(found, str) else item.text(column)


def gsm8k(path: Path) -> Estimate:
    """Whether the flexible extraction of a solution equals that of the truth exactly where the label says so."""
    same, n = 0, 0
    for item in items(path):
        truth = extract(item.text("ground_truth"), "flexible")
        for name in [name for name, value in item.cells.items() if isinstance(value, dict)]:
            one = Item(cells=item.mapping(name), place=f"{item.place}, {name}")
            if not isinstance(right := one.cells.get("is_correct"), bool):
                raise DataError(f'{one.place}: "is_correct" is {right!r}, and true or false is needed')
            same += (extract(said(one, "solution"), "flexible") == truth) == right
            n += 1
    if not n:
        raise DataError(f"{path}: no row has a solution")
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
    read = items(path)
    labels = [PEOPLE[item.one_of("final_label", tuple(PEOPLE))] for item in read]
    return agreement([said(item, "completion") for item in read], labels)


def ifeval(paths: Sequence[Path], data: Path) -> tuple[Estimate, Counter[str]]:
    """Flags that equal the stored ones, and how many do not by kind; loose ones are in a file with "loose" in its name."""
    asked = {prompt.turns[0]: prompt.row["instructions"] for prompt in IFEval().prompts(Files(root=data, hub=False))}
    same, n = 0, 0
    others: Counter[str] = Counter()
    for path in paths:
        for item in items(path):
            prompt, response = item.text("prompt"), said(item, "response")
            kinds, flags = item.array("instruction_id_list"), item.array("follow_instruction_list")
            if prompt not in asked:
                raise DataError(f"{item.place}: the prompt is none of {data / 'ifeval' / 'input_data.jsonl'}: {prompt[:80]!r}")
            if kinds != [kind for kind, _ in asked[prompt]]:
                raise DataError(
                    f"{item.place}: the instructions are {kinds}, and the task's are {[kind for kind, _ in asked[prompt]]}"
                )
            if len(flags) != len(kinds) or not all(isinstance(flag, bool) for flag in flags):
                raise DataError(f"{item.place}: one true or false for each of {len(kinds)} instructions is needed, not {flags}")
            ours = follows(response, asked[prompt], loose="loose" in path.name)
            for kind, mine, stored in zip(kinds, ours, flags, strict=True):
                same, n = same + (mine == stored), n + 1
                others[kind] += mine != stored
    return wilson(same, n), +others


def votes(paths: Sequence[Path]) -> dict[str, tuple[Estimate, float, int]]:
    """MT-bench's agreement of judges and people, with the paper's shares, which are whole percents, and its counts of pairs."""
    given: list[Vote] = []
    for item in (item for path in paths for item in items(path)):
        read_vote(item.cells, item.place)
        given.append(item.cells)
    return {
        f"MT-bench, {first} and {second}, {setup}, turn {turn}; published {share:.0%} of {pairs}": (
            mt_bench_agreement(given, first, second, setup=setup, turn=turn),  # type: ignore[arg-type]
            share,
            pairs,
        )
        for (first, second, setup, turn), (share, pairs) in VOTES.items()
    }


def is_published(share: float, published: float) -> bool:
    """Whether a share is what was rounded to a published whole percent, or within `NEAR` points of it."""
    return abs(100 * share - 100 * published) <= 0.5 + NEAR


def found(named: Path | None, place: Path) -> Path | None:
    """The file that was named, or the one where it is looked for."""
    return named or (place if place.is_file() else None)


def measured(args: argparse.Namespace) -> tuple[dict[str, Estimate], dict[str, tuple[float, int]]]:
    """Every check whose data are here, and MT-bench's published shares and pairs; prints where the data of the others belong."""
    shares: dict[str, Estimate] = {}
    solutions = args.data / "gsm8k" / "example_model_solutions.jsonl"
    judged = args.data / "mt_bench" / "human_judgments.json"
    if path := found(args.gsm8k, solutions):
        shares["GSM8K, flexible extraction against labels"] = gsm8k(path)
    else:
        print(f"GSM8K's solutions: not at hand, there is no {solutions}; put it there, or name it by --gsm8k")
    if (args.data / "humaneval").is_dir():
        shares["HumanEval, published solutions that pass"] = humaneval(args.data)
    else:
        print(f"HumanEval: not at hand, there is no {args.data / 'humaneval' / 'HumanEval.jsonl.gz'}")
    completions = args.xstest or sorted((args.data / "xstest").glob("xstest_v2_completions_*.csv"))
    shares |= {f"XSTest, rule against people, {path.stem}": xstest(path) for path in completions}
    if not completions:
        print(f"XSTest's answers: not at hand, there are no {args.data / 'xstest' / 'xstest_v2_completions_*.csv'}")
    flags = args.ifeval or sorted((args.data / "ifeval").glob("eval_results_*.jsonl"))
    if flags:
        shares["IFEval, flags of stored answers"], others = ifeval(flags, args.data)
        print(f"IFEval's flags that differ, by kind: {dict(others)}")
    else:
        print(f"IFEval's flags: not at hand, there are no {args.data / 'ifeval' / 'eval_results_*.jsonl'}; name them by --ifeval")
    published: dict[str, tuple[float, int]] = {}
    if given := args.votes or [path for path in [judged] if path.is_file()]:
        for name, (share, told, pairs) in votes(given).items():
            shares[name], published[name] = share, (told, pairs)
    else:
        print(f"MT-bench's votes: not at hand, there is no {judged}; put it there, or name it by --votes")
    return shares, published


def main(arguments: Sequence[str] | None = None) -> None:
    """Every check whose data are here. Raises SystemExit naming those that fail, or the file and row that is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--ifeval", type=Path, nargs="+", default=[])
    parser.add_argument("--xstest", type=Path, nargs="+", default=[])
    parser.add_argument("--votes", type=Path, nargs="+", default=[])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    try:
        shares, published = measured(args)
    except (DataError, ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    for name, share in shares.items():
        print(f"{name}: {100 * share.value:.2f}% [{100 * share.low:.2f}, {100 * share.high:.2f}], n = {share.n}")
    args.results.parent.mkdir(exist_ok=True)
    known = json.loads(args.results.read_text()) if args.results.is_file() else {}
    args.results.write_text(json.dumps(known | {name: shown(share) for name, share in shares.items()}, indent=1) + "\n")
    failed = [name for name, share in shares.items() if share.value < ENOUGH.get(name, 0.0)]
    failed += [
        name for name, (told, pairs) in published.items() if not is_published(shares[name].value, told) or shares[name].n != pairs
    ]
    if failed:
        raise SystemExit(f"not what is asked: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
