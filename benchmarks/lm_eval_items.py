"""The items of TruthfulQA, MMLU and BBQ that both sides are asked, and the files from which lm-eval reads them.

lm-eval keeps its own wording, shots and measures; only where the rows come from is changed, since the hub may not be reachable.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.evals.tasks.files import Files, Item
from truing.evals.tasks.mmlu import COLUMNS, LETTERS
from truing.evals.tasks.truthfulqa import labels

SUBJECTS = ("anatomy", "high_school_us_history", "machine_learning", "professional_law", "sociology", "virology")

BBQ_COLUMNS = (
    *("context", "question", "ans0", "ans1", "ans2", "label"),
    *("context_condition", "question_polarity", "category", "answer_info"),
)


def choose(data: Path, folder: Path, counts: Mapping[str, int], seed: int = 0) -> dict[str, list[str]]:
    """Writes what lm-eval needs into the folder; gives the keys of the chosen items by task."""
    files, rng = Files(root=data, hub=False), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    keys: dict[str, list[str]] = {}
    if counts.get("truthfulqa"):
        rows = [_truthfulqa(item) for item in _some(files.items("truthfulqa/mc_task.json"), counts["truthfulqa"], rng)]
        keys["truthfulqa"] = [row["key"] for row in rows]
        for part in ("mc1", "mc2"):
            _task(folder, f"own_truthfulqa_{part}", f"truthfulqa/truthfulqa_{part}.yaml", {"validation": rows}, "")
    if counts.get("mmlu"):
        test, dev = (files.tables("mmlu/mmlu.zip", f"data/{split}", f"_{split}.csv", COLUMNS) for split in ("test", "dev"))
        keys["mmlu"] = []
        for subject in SUBJECTS:
            numbered = list(enumerate(test[subject]))
            rows = [_mmlu(subject, n, item) for n, item in _some(numbered, counts["mmlu"] // len(SUBJECTS), rng)]
            shots = [_mmlu(subject, n, item) for n, item in enumerate(dev[subject])]
            keys["mmlu"] += [row["key"] for row in rows]
            _task(
                folder, f"own_mmlu_{subject}", f"mmlu/default/mmlu_{subject}.yaml", {"test": rows, "dev": shots}, "num_fewshot: 5\n"
            )
    if counts.get("bbq"):
        items = [item for path in files.group("bbq", "*.jsonl") for item in files.items(f"bbq/{path.name}")]
        rows = [_bbq(item) for item in _some(items, counts["bbq"], rng)]
        keys["bbq"] = [row["key"] for row in rows]
        _task(folder, "own_bbq", "bbq/bbq_multiple_choice.yaml", {"test": rows}, "")
    return keys


def _some(items: list[Any], count: int, rng: random.Random) -> list[Any]:
    return [items[i] for i in sorted(rng.sample(range(len(items)), min(count, len(items))))]


def _truthfulqa(item: Item) -> dict[str, Any]:
    targets = {column: labels(item, column) for column in ("mc1_targets", "mc2_targets")}
    # lm-eval takes the first choice for the right one
    ordered = {column: sorted(found.items(), key=lambda pair: -pair[1]) for column, found in targets.items()}
    return {
        "key": item.text("question"),
        "question": item.text("question"),
        **{column: {"choices": [a for a, _ in pairs], "labels": [b for _, b in pairs]} for column, pairs in ordered.items()},
    }


def _mmlu(subject: str, number: int, item: Item) -> dict[str, Any]:
    return {
        "key": f"{subject}/{number}",
        "question": item.text("question"),
        "subject": subject,
        "choices": [item.cells[letter] for letter in LETTERS],
        "answer": LETTERS.index(item.text("answer")),
    }


def _bbq(item: Item) -> dict[str, Any]:
    kept = (
        "context",
        "question",
        "ans0",
        "ans1",
        "ans2",
        "label",
        "context_condition",
        "question_polarity",
        "category",
        "answer_info",
    )
    row = {name: item.cells[name] for name in kept}
    groups = item.mapping("additional_metadata")["stereotyped_groups"]
    return {"key": f"{row['category']}/{item.whole('example_id')}", **row, "additional_metadata": {"stereotyped_groups": groups}}


def _task(folder: Path, name: str, original: str, splits: Mapping[str, list[dict[str, Any]]], more: str) -> None:
    """A task that is lm-eval's own but for the place of its rows; LM_EVAL stands for the package's folder until it is known."""
    files = {}
    for split, rows in splits.items():
        path = (folder / f"{name}_{split}.jsonl").resolve()
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(path)
    (folder / f"{name}.yaml").write_text(
        f"include: LM_EVAL/tasks/{original}\ntask: {name}\ntask_alias: {name}\ntag: own_tasks\n"
        "dataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs:\n  data_files: {json.dumps(files)}\n{more}"
    )
