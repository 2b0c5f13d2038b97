"""A chat endpoint (POST URL/chat/completions, as OpenAI, vLLM and llama.cpp serve it) asked patiently, once for each thing asked.

What passes (a timeout, 429 with its Retry-After, 500, a dropped connection, a reply that is no reply) is asked again with back-off;
what fails in the end is a named failure, never a text of our own. Plain `http.client`: a body is read up to a limit and a deadline,
duplicate keys are seen, and no redirect carries the key elsewhere.
"""

import hashlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from truing.data.problems import BadValueError
from truing.data.strict_json import parse_row
from truing.endpoint.asking import PASSING, Ask, Endpoint, Failed, Fault, Reply, Spent
from truing.endpoint.replies import Replies
from truing.randomness import counted_seed
from truing.runs.durable import to_json

LARGEST = 4 << 20
"""Bytes of a reply; one that is longer is none."""
EXCERPT = 200
ENDINGS: Mapping[object, Literal["end", "length"]] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "end"),
    **dict.fromkeys(("length", "max_tokens"), "length"),
}
"""What servers call the end of an answer; any other reason, such as content_filter, is no whole answer."""

Check = Callable[[str], object]
"""Reads the text of a reply; raises ValueError for one that does not say what was asked, which is then asked again."""


class _FaultError(Exception):
    def __init__(self, fault: Fault, text: str, patience: float = 0.0) -> None:
        super().__init__(text)
        self.fault: Fault = fault
        self.patience = patience


class Client:
    """Asks an endpoint. Example: `Client(Endpoint(url=..., model=...), Replies(path)).ask([Ask(messages=...)])[0]`."""

    def __init__(self, endpoint: Endpoint, replies: Replies | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        place = urlsplit(endpoint.url)
        if place.scheme not in ("http", "https") or not place.hostname or not _port(place):
            raise ValueError(f"endpoint url {endpoint.url!r}: write it as http://HOST:PORT/v1 or https://HOST/v1")
        self.endpoint = endpoint
        self.replies = replies or Replies()
        self.spent = Spent(endpoint=endpoint)
        self._sleep = sleep
        self._place = place
        self._lock = threading.Lock()
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **_authorization(endpoint)}

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
        return hashlib.sha256(to_json([self.endpoint.url, self._body(ask, ask.seed), ask.place])).hexdigest()

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
        for attempt in range(self.endpoint.retries + 1):
            try:
                reply = self._once(ask, None if ask.seed is None else ask.seed + attempt)
                complaint = _complaint(check, reply.text)
                if complaint is not None:
                    raise _FaultError("malformed reply", complaint)
            except _FaultError as error:
                with self._lock:
                    self.spent.faults[error.fault] += 1
                last = attempt == self.endpoint.retries
                if last or error.fault not in PASSING or error.patience > self.endpoint.longest_wait:
                    with self._lock:
                        self.spent.failed += 1
                    return Failed(fault=error.fault, text=str(error), tries=attempt + 1)
                self._sleep(max(error.patience, self._backoff(key, attempt)))
            else:
                self.replies.put(key, reply)
                return reply
        raise AssertionError("the last try returns")

    def _backoff(self, key: str, attempt: int) -> float:
        """Twice as long after each try, up to a half less by chance, so that many askers do not come back together."""
        share = counted_seed(int(key[:12], 16), "back-off", attempt) / 2**63
        return min(self.endpoint.longest_wait, self.endpoint.wait * 2.0**attempt) * (1 - share / 2)

    def _once(self, ask: Ask, seed: int | None) -> Reply:
        with self._lock:
            self.spent.requests += 1
        status, headers, body = self._post(json.dumps(self._body(ask, seed)).encode())
        if status != 200:
            raise _refusal(status, headers, body)
        reply, counted = _reply(headers.get("content-type", ""), body)
        with self._lock:
            self.spent.read += reply.read
            self.spent.said += reply.said
            self.spent.uncounted += not counted
        return reply

    def _post(self, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body, or the fault; over within the endpoint's seconds, however slowly the server drips."""
        connection, target = self._connection()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(2)

        timer = threading.Timer(self.endpoint.seconds, give_up)
        timer.daemon = True
        try:
            try:
                connection.connect()
            except TimeoutError:
                raise _FaultError("timed out", f"no connection after {self.endpoint.seconds:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                raise _FaultError("cannot connect", str(error)[:EXCERPT]) from None
            timer.start()
            connection.request("POST", target, body, self._headers)
            response = connection.getresponse()
            data = response.read(LARGEST + 1)
            if late.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise _FaultError("timed out", f"after {self.endpoint.seconds:g} s") from None
            raise _FaultError("connection lost", f"{type(error).__name__}: {error}"[:EXCERPT]) from None
        finally:
            timer.cancel()
            connection.close()
        return response.status, response.headers, data

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        """A connection, through the proxy of the environment where there is one, and what is asked for on it."""
        place, host = self._place, str(self._place.hostname)
        secure, port = place.scheme == "https", _port(place)
        target = f"{place.path.rstrip('/')}/chat/completions" + (f"?{place.query}" if place.query else "")
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        proxy = getproxies().get(place.scheme)
        if proxy is None or host in ("127.0.0.1", "localhost", "::1") or proxy_bypass(host):
            return kind(host, port, timeout=self.endpoint.seconds), target
        by = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        connection = kind(str(by.hostname), by.port or 80, timeout=self.endpoint.seconds)
        if not secure:
            return connection, f"http://{place.netloc.rpartition('@')[2]}{target}"
        connection.set_tunnel(host, port)
        return connection, target


def _port(place: SplitResult) -> int:
    """The port, 0 where it is none."""
    with suppress(ValueError):
        return place.port or (443 if place.scheme == "https" else 80)
    return 0


def _authorization(endpoint: Endpoint) -> dict[str, str]:
    if endpoint.key_variable is None:
        return {}
    key = os.environ.get(endpoint.key_variable, "").strip()
    if not key:
        raise ValueError(f"endpoint key_variable={endpoint.key_variable}: this environment variable is empty; set it to the key")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"endpoint key_variable={endpoint.key_variable}: what it holds is no key (one line of ASCII)")
    return {"Authorization": f"Bearer {key}"}


def _complaint(check: Check, text: str) -> str | None:
    try:
        check(text)
    except ValueError as error:
        return str(error)[:EXCERPT]
    return None


def _refusal(status: int, headers: http.client.HTTPMessage, body: bytes) -> _FaultError:
    said = f"status {status}: {' '.join(body[:EXCERPT].decode(errors='replace').split())}"
    if status == 429:
        return _FaultError("too many requests", said, _retry_after(headers))
    if status in (408, 409, 425) or status >= 500:
        return _FaultError("server error", said, _retry_after(headers))
    if 200 < status < 300:
        return _FaultError("malformed reply", said)
    return _FaultError("redirected" if 300 <= status < 400 else "refused", said)


def _retry_after(headers: http.client.HTTPMessage) -> float:
    """Seconds that the server asks to wait, given as such or as a date; 0 where it does not say."""
    text = str(headers.get("retry-after", "")).strip()
    with suppress(ValueError):
        return max(0.0, float(text)) if float(text) < float("inf") else 0.0
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _reply(content_type: str, body: bytes) -> tuple[Reply, bool]:
    """The reply, its ending not yet looked at, and whether its tokens were counted."""

    def malformed(why: str) -> _FaultError:
        return _FaultError("malformed reply", f"{why}: {' '.join(body[:EXCERPT].decode(errors='replace').split())}"[:EXCERPT])

    if len(body) > LARGEST:
        raise malformed(f"more than {LARGEST >> 20} MiB")
    if "json" not in content_type.lower():
        raise malformed(f"of type {content_type or 'unknown'}, not JSON")
    try:
        row = parse_row(body)
    except BadValueError as error:
        raise malformed(str(error)) from None
    choices = row.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(choice, dict) or not isinstance(text, str):
        raise malformed("holds no choices[0].message.content")
    ending = choice.get("finish_reason")
    if not isinstance(ending, str) or ending not in ENDINGS:
        raise malformed(f"ended by {ending!r}, so it is no whole answer")
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
