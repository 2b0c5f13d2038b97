"""Answers drawn by a server (vLLM, or one that takes its requests), brought to the live policy's weights before each round.

Token ids go to POST URL/completions, and token ids come back, each with its log-probability. Adapters are loaded by POST
URL/load_lora_adapter under a name of their own for each version; whole models by vLLM's development interface. The server reads
the run's folder, under the same path.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from http.client import HTTPMessage
from typing import Any

from truing.endpoint import Endpoint, Failed
from truing.endpoint.transport import FaultError, Transport, malformed, row_of
from truing.randomness import counted_seed
from truing.records import Completion
from truing.rollouts.collect import Progress, Request, Tokens
from truing.rollouts.drawn import completion_of
from truing.rollouts.weights import LiveWeights

FOR_ADAPTERS = "vLLM does with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank {rank}"
FOR_MODELS = "vLLM does with VLLM_SERVER_DEV_MODE=1 vllm serve MODEL; or train adapters: lora.rank=16"
FOR_TOKENS = (
    "vLLM's completions do (return_token_ids, logprobs); a server that says text only cannot be learnt from: set sampler=local"
)


class ServerFailedError(ValueError):
    """The server is gone or refuses: the text says what it said, and what to do."""


class ServerSampler:
    """Example: `ServerSampler(endpoint=Endpoint(url="http://127.0.0.1:8000/v1", model="base"), weights=live)`."""

    def __init__(self, *, endpoint: Endpoint, weights: LiveWeights, sleep: Callable[[float], None] = time.sleep) -> None:
        """`endpoint.model` is the model that the policy started from, by its name at the server."""
        self._transport = Transport(endpoint, sleep=sleep)
        self._endpoint = endpoint
        self._weights = weights
        self._model = endpoint.model
        """Who is asked: the model, or its adapter of this version."""

    def bring(self, version: int) -> None:
        """Write the policy's weights and have the server load them. Raises ServerFailedError where it does not."""
        written = self._weights.write(version)
        if self._weights.world.rank == 0:
            if self._weights.lora:
                self._load_adapter(written.name, str(written.folder), self._weights.lora.rank)
            else:
                self._reload(str(written.folder))
        self._weights.world.wait()
        if self._weights.lora:
            self._model = written.name
        self._weights.keep_only(written)

    def _load_adapter(self, name: str, folder: str, rank: int) -> None:
        # In place, for a server that has this name from before an interruption: the same name is the same weights.
        self._tell(
            "load_lora_adapter", {"lora_name": name, "lora_path": folder, "load_inplace": True}, FOR_ADAPTERS.format(rank=rank)
        )
        if self._model not in (self._endpoint.model, name):
            self._unload(self._model)

    def _unload(self, name: str) -> None:
        """A server that was started again meanwhile does not have it, or is not there, and that is well."""
        with suppress(FaultError):
            self._transport.post("unload_lora_adapter", json.dumps({"lora_name": name}).encode())

    def _reload(self, folder: str) -> None:
        self._tell("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}}, FOR_MODELS)
        self._tell("/reset_prefix_cache", {}, FOR_MODELS)

    def _tell(self, path: str, body: Mapping[str, object], who_does: str) -> None:
        data = json.dumps(body).encode()
        found = self._transport.patiently(_key(data), lambda attempt: self._transport.post(path, data))
        if isinstance(found, Failed):
            raise ServerFailedError(
                f"{self._endpoint.url}: the server does not load the policy's weights ({path}: {found}), and without them nothing "
                f"is trained. {who_does}. It must see {self._weights.folder.resolve()}. The same command goes on"
            )

    def __call__(self, request: Request, progress: Progress | None = None) -> list[Completion]:
        """One completion a prompt, each a request. Raises ServerFailedError once one of them cannot be had."""

        def answer(place: int, prompt: Tokens) -> Completion:
            body = json.dumps(self._body(prompt, place, request)).encode()
            found = self._transport.patiently(_key(body), lambda attempt: _choice(*self._transport.post("completions", body)))
            if isinstance(found, Failed):
                raise ServerFailedError(
                    f"{self._endpoint.url}: the server gave no answer to prompt {place} of the round ({found}). Start it again; "
                    "the same command draws the round again and goes on"
                )
            return _completion(found, request)

        asked = list(zip(request.places, request.prompts, strict=True))
        found: dict[int, Completion] = {}
        with ThreadPoolExecutor(max_workers=self._endpoint.concurrent) as pool:
            futures = {pool.submit(answer, place, prompt): place for place, prompt in asked}
            try:
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    if progress:
                        progress(len(found), len(asked))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [found[place] for place in request.places]

    def _body(self, prompt: Tokens, place: int, request: Request) -> dict[str, object]:
        return {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": request.decoding.max_tokens,
            "temperature": request.decoding.temperature,
            # What a server would take from the model's generation config where it is not told.
            **{"top_p": 1.0, "top_k": -1, "min_p": 0.0},
            **{"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
            "seed": counted_seed(request.seed, "sample", place),
            "stop_token_ids": sorted(request.stop_ids),
            "ignore_eos": True,  # the end tokens are ours, not those of the generation config
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def close(self) -> None:
        """Rid the server of the last adapter, as far as it answers."""
        if self._weights.world.rank == 0 and self._model != self._endpoint.model:
            self._unload(self._model)


def _key(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _choice(headers: HTTPMessage, body: bytes) -> Mapping[str, object]:
    """The one answer of a reply; FaultError, so that it is asked for again, where there is none."""
    choices = row_of(headers, body).get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    if not isinstance(choice, dict) or choice.get("finish_reason") not in ("stop", "length"):
        raise malformed("holds no whole answer", body)
    return choice


def _completion(choice: Mapping[str, object], request: Request) -> Completion:
    said = choice.get("logprobs")
    said = said if isinstance(said, dict) else {}
    tokens: Any = choice.get("token_ids")
    if not isinstance(tokens, list):  # older servers say them among the log-probabilities alone
        tokens = [_token_id(token) for token in said.get("tokens") or ()]
    log_probs = said.get("token_logprobs")
    if not tokens or not all(type(token) is int and token >= 0 for token in tokens) or not isinstance(log_probs, list):
        raise ServerFailedError(f"the server says no token ids with their log-probabilities. {FOR_TOKENS}")
    numbers = [float(value) if isinstance(value, int | float) else math.nan for value in log_probs]
    return completion_of(
        tokens, numbers, str(choice["finish_reason"]), max_tokens=request.decoding.max_tokens, stop_ids=request.stop_ids
    )


def _token_id(token: object) -> int | None:
    """42 of `token_id:42`."""
    number = token.removeprefix("token_id:") if isinstance(token, str) and token.startswith("token_id:") else ""
    return int(number) if number.isascii() and number.isdigit() else None
