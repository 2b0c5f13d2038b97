"""A process that has imported everything, forks a child for each command it is given, and kills it when told to.

`python zygote.py MODEL` reads one JSON object a line: `{"argv": [...], "log": path, "signal": 9, "seconds": 0.4}` runs the `truing`
command of those arguments, its output in the log, and sends the signal after so many seconds; `"lines": [path, 5]` instead sends it
once a file has so many lines, neither never. It answers with the exit code (minus the signal where one killed it) and the seconds
it took. The parent computes nothing with torch: it has no threads, which a fork would not copy.
"""

import json
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import transformers.models.llama.modeling_llama  # noqa: F401

import truing.recipes.commands
import truing.recipes.preference
import truing.recipes.reward_model
import truing.recipes.sft  # noqa: F401
from truing import cli
from truing.data.chat import ChatTokenizer
from truing.models.load import load_tokenizer


def child(argv: list[str], log: str) -> None:
    """The command, as in a process of its own: also with random states of its own. Never returns."""
    with Path(log).open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    random.seed()
    np.random.seed()
    sys.argv = ["truing", *argv]
    code = 70
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def attempt(task: dict[str, Any]) -> dict[str, float]:
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(task["argv"], task["log"])

    def due() -> bool:
        if "lines" in task:
            path, least = task["lines"]
            return Path(path).is_file() and Path(path).read_bytes().count(b"\n") >= least
        return time.monotonic() - began >= task["seconds"]

    ended = 0
    if "lines" in task or "seconds" in task:
        while not ended and not due():
            time.sleep(0.001)
            ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, task["signal"])
    if not ended:
        _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began}


if __name__ == "__main__":
    ChatTokenizer.of(load_tokenizer(sys.argv[1]))  # its template is tried in a process of its own, once for all children
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(attempt(json.loads(line))) + "\n")
        answers.flush()
