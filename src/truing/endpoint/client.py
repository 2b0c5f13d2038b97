"""A chat endpoint (POST URL/chat/completions, as OpenAI, vLLM and llama.cpp serve it) asked patiently, once for each thing asked.

What passes (a timeout, 429 with its Retry-After, 500, a dropped connection, a reply that is no reply) is asked again with back-off;
what fails in the end is a named failure, never a text of our own. How a request travels is `truing.endpoint.transport`'s.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Literal

from truing.endpoint.asking import Ask, Endpoint, Failed, Fault, Reply, Spent
from truing.endpoint.replies import Replies
from truing.endpoint.transport import EXCERPT, FaultError, Transport, malformed, row_of
from truing.runs.canonical import digest

ENDINGS: Mapping[object, Literal["end", "length"]] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "end"),
    **dict.fromkeys(("length", "max_tokens"), "length"),
}
"""What servers call the end of an answer; any other reason, such as content_filter, is no whole answer."""

Check = Callable[[str], object]
"""Reads the text of a reply; raises ValueError for one that does not say what was asked, which is then asked again."""


class Client:
    """Asks an endpoint. Example: `Client(Endpoint(url=..., model=...), Replies(path)).ask([Ask(messages=...)])[0]`."""

    def __init__(self, endpoint: Endpoint, replies: Replies | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._transport = Transport(endpoint, sleep=sleep)
        self.endpoint = endpoint
        self.replies = replies or Replies()
        self.spent = Spent(endpoint=endpoint)
        self._lock = threading.Lock()

    def ask(
        self, asks: Sequence[Ask], *, check: Check = str, progress: Callable[[int, int], None] | None = None
    ) -> list[Reply | Failed]:
        """A reply to each question or why there is none, in their order; the same question twice is asked once.

        A kept reply that `check` refuses is asked again.
        """
        keys = [self.key(ask) for ask in asks]
        wanted: dict[str, Ask] = dict(zip(keys, asks, strict=True))
        found: dict[str, Reply | Failed] = {}
        for key in wanted:
            kept = self.replies.get(key)
            if kept is not None and _complaint(check, kept.text) is None:
                found[key] = kept
        with self._lock:
            self.spent.asked += len(asks)
            self.spent.kept += sum(key in found for key in keys)
            self.spent.kept_read += sum(reply.read for reply in found.values() if isinstance(reply, Reply))
            self.spent.kept_said += sum(reply.said for reply in found.values() if isinstance(reply, Reply))
        left = [key for key in wanted if key not in found]
        if progress and found:
            progress(len(found), len(wanted))
        with ThreadPoolExecutor(max_workers=self.endpoint.concurrent) as pool:
            futures = {pool.submit(self._settle, key, wanted[key], check): key for key in left}
            try:
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    if progress:
                        progress(len(found), len(wanted))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [found[key] for key in keys]

    def key(self, ask: Ask) -> str:
        """A hash of everything that decides the reply."""
        return digest([self.endpoint.url, self._body(ask, ask.seed), ask.place])

    def _body(self, ask: Ask, seed: int | None) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self.endpoint.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in ask.messages],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
        }
        if seed is not None:
            body["seed"] = seed % (1 << 31)
        if ask.schema is not None and self.endpoint.structured != "none":
            schema = {"name": "reply", "strict": True, "schema": ask.schema}
            by_schema = self.endpoint.structured == "json_schema"
            body["response_format"] = {"type": "json_schema", "json_schema": schema} if by_schema else {"type": "json_object"}
        return body

    def _settle(self, key: str, ask: Ask, check: Check) -> Reply | Failed:
        """The first good reply, kept; or the last failure."""

        def once(attempt: int) -> Reply:
            reply = self._once(ask, None if ask.seed is None else ask.seed + attempt)
            complaint = _complaint(check, reply.text)
            if complaint is not None:
                raise FaultError("malformed reply", complaint)
            return reply

        found = self._transport.patiently(key, once, self._count)
        if isinstance(found, Reply):
            self.replies.put(key, found)
        else:
            with self._lock:
                self.spent.failed += 1
        return found

    def _count(self, fault: Fault) -> None:
        with self._lock:
            self.spent.faults[fault] += 1

    def _once(self, ask: Ask, seed: int | None) -> Reply:
        with self._lock:
            self.spent.requests += 1
        headers, body = self._transport.post("chat/completions", json.dumps(self._body(ask, seed)).encode())
        reply, counted = _reply(row_of(headers, body), body)
        with self._lock:
            self.spent.read += reply.read
            self.spent.said += reply.said
            self.spent.uncounted += not counted
        return reply


def _complaint(check: Check, text: str) -> str | None:
    try:
        check(text)
    except ValueError as error:
        return str(error)[:EXCERPT]
    return None


def _reply(row: Mapping[str, object], body: bytes) -> tuple[Reply, bool]:
    """The reply, and whether its tokens were counted."""
    choices = row.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(choice, dict) or not isinstance(text, str):
        raise malformed("holds no choices[0].message.content", body)
    ending = choice.get("finish_reason")
    if not isinstance(ending, str) or ending not in ENDINGS:
        raise malformed(f"ended by {ending!r}, so it is no whole answer", body)
    usage = row.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    read, said = (count if type(count) is int and count >= 0 else None for count in counts)
    model = row.get("model")
    return (
        Reply(
            text=text,
            stop=ENDINGS[ending],
            read=read or 0,
            said=said or 0,
            model=model if isinstance(model, str) else "",
        ),
        read is not None and said is not None,
    )
