"""lm-eval's side, run in its own environment: `python -P lm_eval_side.py SPEC RESULT`."""

import json
import sys
import time
from pathlib import Path

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(spec["threads"])
    folder = Path(spec["folder"])
    package = str(Path(lm_eval.__file__).parent)
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace("LM_EVAL", package))
    model = HFLM(pretrained=spec["model"], dtype=spec["dtype"], device="cpu", batch_size=spec["batch_size"])
    # Once, outside the timers: it reads every task file of the package, whatever is asked of it.
    manager = TaskManager(include_path=str(folder))
    seconds: dict[str, dict[str, float]] = {}
    rows = []
    for group, tasks in spec["tasks"].items():
        clock, cpu = time.monotonic(), time.process_time()
        found = lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=0)
        seconds[group] = {"clock": time.monotonic() - clock, "cpu": time.process_time() - cpu}
        for task, samples in found["samples"].items():
            for sample in samples:
                rows.append(
                    {
                        "task": task,
                        "key": sample["doc"]["key"],
                        "log_probs": [float(response[0]) for response in sample["filtered_resps"]],
                        "acc": float(sample["acc"]),
                    }
                )
    Path(sys.argv[2]).write_text(json.dumps({"seconds": seconds, "rows": rows, "version": lm_eval.__version__}))


main()
