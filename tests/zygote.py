"""Commands in children of one process that has everything imported, so that each costs a fork; they can be stopped at any instant.

Run as a script, this is that process; `Zygote` is what a test holds of it. It computes nothing with torch before it forks: it has
no threads, which a fork would not copy.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

LONGEST = 120.0
"""Seconds after which a command is taken for stuck and aborted."""
IMPORTED = (
    "transformers.models.llama.modeling_llama",
    *(
        f"truing.recipes.{name}"
        for name in ("commands", "sft", "reward_model", "preference", "feedback", "ppo", "label", "online", "constitutional")
    ),
)


class Zygote:
    """Example: `zygote(["train", "dpo", ...], log, signal=9, seconds=0.4)` is `[-9]`, or `[0]` when it was done by then."""

    def __init__(self, model: Path, within: Sequence[str] = ()) -> None:
        settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "GLOO_SOCKET_IFNAME": "lo"}
        self.process = subprocess.Popen(
            [*within, sys.executable, __file__, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )
        self.seconds = 0.0
        """How long the last command ran."""

    def __call__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        ranks: int = 1,
        call: str | None = None,
        signal: int = signal.SIGKILL,
        seconds: float | None = None,
        lines: tuple[Path, int] | None = None,
        to: Sequence[int] | None = None,
    ) -> list[int]:
        """Runs `truing *argv`, its output in the log: the exit code of each rank, or minus the signal that killed it.

        The signal goes out after so many seconds, or once a file has so many lines, to all ranks or to some. `call` names what
        runs on the arguments instead, as `module:function`.
        """
        stop = {"signal": int(signal), "seconds": seconds, "lines": lines and [str(lines[0]), lines[1]], "to": to}
        task = {"argv": list(argv), "log": str(log), "ranks": ranks, "call": call, **stop}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.seconds = answer["seconds"]
        codes: list[int] = answer["codes"]
        return codes

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def child(task: dict[str, Any]) -> None:
    """The command, as in a process of its own: also with random states of its own. Never returns."""
    with Path(task["log"]).open("ab") as stream, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    random.seed()
    import_module("numpy").random.seed()
    sys.argv = ["truing", *task["argv"]]
    code = 70
    try:
        if task["call"]:
            module, _, function = task["call"].partition(":")
            getattr(import_module(module), function)(*task["argv"])
        else:
            import_module("truing.cli").main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def started(task: dict[str, Any]) -> list[int]:
    """The processes, announced to each other as torchrun does."""
    ranks, found = task["ranks"], []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(ranks):
        found.append(os.fork())
        if found[-1] == 0:
            if ranks > 1:
                here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in here.items()})
            child(task)
    return found


def attempt(task: dict[str, Any]) -> dict[str, object]:
    began = time.monotonic()
    pids = started(task)
    codes: dict[int, int] = {}

    def due() -> bool:
        if task["lines"]:
            path, least = task["lines"]
            return Path(path).is_file() and Path(path).read_bytes().count(b"\n") >= least
        return task["seconds"] is not None and time.monotonic() - began >= task["seconds"]

    asked = False
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() - began > LONGEST:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGABRT)
        if not asked and due():
            asked = True
            for rank in range(len(pids)) if task["to"] is None else task["to"]:
                if pids[rank] not in codes:
                    os.kill(pids[rank], task["signal"])
        time.sleep(0.001)
    return {"codes": [codes[pid] for pid in pids], "seconds": time.monotonic() - began}


def main(model: str) -> None:
    for name in IMPORTED:
        import_module(name)
    tokenizer = import_module("truing.models.load").load_tokenizer(model)
    # the template is tried in a process of its own: once here for all children
    import_module("truing.data.chat").ChatTokenizer.of(tokenizer)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(attempt(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
