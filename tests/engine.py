"""A stand-in for vLLM on the tiny model: it reads the folders that it is given with peft and our own loader, and draws from them.

`module` has the part of the package that is used, `serving` the part of the server's interface; both as vLLM 0.32 has them. What
they say comes from the weights that arrived and from nothing else, unless `Engine.deaf` says that they ignore new ones.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peft import PeftModel

from truing.models.load import load_causal
from truing.models.policy import Policy
from truing.records import Completion
from truing.rollouts.sampler import Decoding, sample


@dataclass(kw_only=True)
class Engine:
    """A model, the adapters that it has loaded, and what it was told."""

    model: str
    deaf: bool = False
    """Says that it has loaded weights and has not."""
    adapters: dict[str, Policy] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    seeds: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.base = self._policy(self.model)

    def _policy(self, folder: str, adapter: str = "") -> Policy:
        model = load_causal(folder, dtype=torch.float32)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        return Policy(model, layout="tree")

    def load(self, name: str, folder: str) -> None:
        self.told.append(f"load {name}")
        self.adapters[name] = self.base if self.deaf else self._policy(self.model, folder)

    def reload(self, folder: str) -> None:
        self.told.append(f"reload {Path(folder).name}")
        self.base = self.base if self.deaf else self._policy(folder)

    def draw(self, name: str, asked: Mapping[str, Any]) -> Completion:
        """One answer; a request that does not ask for the whole distribution is refused."""
        assert asked["top_p"] == 1.0
        assert asked["top_k"] == -1
        assert asked["ignore_eos"]
        self.seeds.add(asked["seed"])
        decoding = Decoding(max_tokens=asked["max_tokens"], temperature=asked["temperature"])
        stop_ids = frozenset(asked["stop_token_ids"])
        policy = self.adapters.get(name, self.base)
        return sample(policy, [tuple(asked["prompt"])], decoding, stop_ids=stop_ids, seed=asked["seed"])[0]


REASONS = {"end": "stop", "length": "length"}


def module(made: list[Engine], **engine: Any) -> dict[str, ModuleType]:
    """What stands in `sys.modules` for vllm; each engine that is made joins the list."""

    class LLM:
        def __init__(self, model: str, **settings: Any) -> None:
            assert settings["logprobs_mode"] == "processed_logprobs"
            self.engine = Engine(model=model, **engine)
            self.with_adapters = settings.get("enable_lora", False)
            made.append(self.engine)

        def generate(
            self, prompts: Sequence[Mapping[str, Any]], params: Sequence[Any], *, use_tqdm: bool, lora_request: Any
        ) -> list[Any]:
            if lora_request and lora_request.lora_name not in self.engine.adapters:
                assert self.with_adapters
                self.engine.load(lora_request.lora_name, lora_request.lora_path)
            return [self.one(prompt, one, lora_request) for prompt, one in zip(prompts, params, strict=True)]

        def one(self, prompt: Mapping[str, Any], params: Any, request: Any) -> Any:
            asked = {**vars(params), "prompt": prompt["prompt_token_ids"]}
            said = self.engine.draw(request.lora_name if request else "", asked)
            pairs = zip(said.tokens, said.log_probs, strict=True)
            heard = [{token: SimpleNamespace(logprob=value)} for token, value in pairs]
            output = SimpleNamespace(token_ids=said.tokens, logprobs=heard, finish_reason=REASONS[said.stop])
            return SimpleNamespace(outputs=[output])

        def collective_rpc(self, method: str, *, kwargs: Mapping[str, str]) -> None:
            assert method == "reload_weights"
            self.engine.reload(kwargs["weights_path"])

        def reset_prefix_cache(self) -> bool:
            self.engine.told.append("reset")
            return True

    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams, request.LoRARequest = LLM, SimpleNamespace, SimpleNamespace  # type: ignore[attr-defined]
    return {"vllm": vllm, "vllm.lora": lora, "vllm.lora.request": request}


@dataclass(kw_only=True)
class Server:
    """A running server."""

    url: str
    engine: Engine
    faults: list[int] = field(default_factory=list)
    """Statuses of the next requests for answers; 0 answers."""
    text_only: bool = False
    loads: bool = True
    """Whether it was started so that weights can be loaded."""


@contextmanager
def serving(model: str, **settings: Any) -> Iterator[Server]:
    """A server on a free port of the loopback, for as long as the block runs."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                self.answer(asked)

        def answer(self, asked: Mapping[str, Any]) -> None:
            engine = server.engine
            match self.path:
                case "/v1/completions":
                    status = server.faults.pop(0) if server.faults else 0
                    known = asked["model"] in (*engine.adapters, "base")
                    self.reply(status or (200 if known else 404), self.choices(asked) if known and not status else {})
                case "/v1/load_lora_adapter" if server.loads:
                    engine.load(asked["lora_name"], asked["lora_path"])
                    self.reply(200, "Success")
                case "/v1/unload_lora_adapter" if server.loads:
                    engine.told.append(f"unload {asked['lora_name']}")
                    self.reply(200 if engine.adapters.pop(asked["lora_name"], None) else 404, "")
                case "/collective_rpc" if server.loads:
                    assert asked["method"] == "reload_weights"
                    engine.reload(asked["kwargs"]["weights_path"])
                    self.reply(200, {"results": [None]})
                case "/reset_prefix_cache" if server.loads:
                    engine.told.append("reset")
                    self.reply(200, {"success": True})
                case _:
                    self.reply(404, {"detail": "Not Found"})

        def choices(self, asked: Mapping[str, Any]) -> object:
            said = server.engine.draw(asked["model"], asked)
            heard = {"tokens": [f"token_id:{token}" for token in said.tokens], "token_logprobs": said.log_probs}
            whole = {} if server.text_only else {"logprobs": heard, "token_ids": said.tokens}
            return {"choices": [{"index": 0, "text": "...", "finish_reason": REASONS[said.stop], **whole}]}

        def reply(self, status: int, value: object) -> None:
            body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(url=f"http://127.0.0.1:{http.server_port}/v1", engine=Engine(model=model), **settings)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
