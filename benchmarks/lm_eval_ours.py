"""Truing's side of the comparison with lm-eval: `python -m benchmarks.lm_eval_ours SPEC RESULT`."""

import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.lm_eval_items import SUBJECTS
from truing.evals.tasks.bbq import BBQ
from truing.evals.tasks.evaluate import Model
from truing.evals.tasks.files import Files
from truing.evals.tasks.likelihood import log_likelihoods
from truing.evals.tasks.mmlu import MMLU
from truing.evals.tasks.task import ChoiceTask
from truing.evals.tasks.truthfulqa import TruthfulQA

TASKS: dict[str, ChoiceTask] = {"truthfulqa": TruthfulQA(), "mmlu": MMLU(subjects=SUBJECTS), "bbq": BBQ()}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(spec["threads"])
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[spec["dtype"]]
    model = Model(name="", path=spec["model"], dtype=dtype, device=torch.device("cpu"))
    policy, chat = model.policy, model.chat
    seconds: dict[str, dict[str, float]] = {}
    rows = []
    for name, keys in spec["keys"].items():
        clock, cpu = time.monotonic(), time.process_time()
        task, wanted = TASKS[name], set(keys)
        questions = [q for q in task.questions(Files(root=Path(spec["data"]), hub=False)) if q.key in wanted]
        found = log_likelihoods(policy, chat, questions, style="plain", budget=spec["budget"])
        judged = [task.judge(question, values) for question, values in zip(questions, found, strict=True)]
        seconds[name] = {"clock": time.monotonic() - clock, "cpu": time.process_time() - cpu}
        rows += [{"task": name, "row": dict(question.row), **row} for question, row in zip(questions, judged, strict=True)]
    Path(sys.argv[2]).write_text(json.dumps({"seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
