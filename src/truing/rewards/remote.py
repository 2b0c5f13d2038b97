"""A scorer behind HTTP on this machine: it is posted one answer and returns one number.

Like every rule it runs in a process of its own under a time limit (`truing.rewards.outside`). Its reply is untrusted: one number is
taken out of it. Model servers that chat are `truing.endpoint`. No torch here.
"""

import http.client
import ipaddress
import json
import math
import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import Field

from truing.records import Rollout

LARGEST = 1 << 16
"""Bytes of a reply; one that is longer is none."""
EXCERPT = 120


@dataclass(frozen=True, kw_only=True)
class RemoteScore:
    """The number that a program on this machine gives: posted {"prompt": [...], "response": ..., "tags": {...}} as JSON."""

    url: str
    """Where it listens, such as http://127.0.0.1:8900/score; another machine's is refused."""
    field: str = "reward"
    """The reply is a JSON number, or an object that has the number under this name."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further tries where it cannot be reached, drops the connection or answers with 429 or 500 and above."""
    wait: Annotated[float, Field(ge=0)] = 0.5
    """Seconds before the second try; each further one waits twice as long. All tries together have reward_seconds."""
    weight: float = 1.0
    """What the value is multiplied by in the sum."""

    def __post_init__(self) -> None:
        place = urlsplit(self.url)
        if place.scheme != "http" or not _is_here(place):
            raise ValueError(f"url {self.url!r}: write it as http://127.0.0.1:PORT/PATH; a scorer runs on this machine")

    def score(self, rollout: Rollout) -> float:
        """The number. Raises ValueError naming what came instead."""
        body = json.dumps(
            {
                "prompt": [{"role": turn.role, "content": turn.content} for turn in rollout.prompt.messages],
                "response": rollout.response,
                "tags": dict(rollout.prompt.tags),
            }
        ).encode()
        for attempt in range(self.retries + 1):
            passing, text, reply = self._post(body)
            if reply is not None:
                return self._number(reply)
            if not passing or attempt == self.retries:
                break
            time.sleep(self.wait * 2.0**attempt)
        raise ValueError(f"{self.url}: {text} ({attempt + 1} tries)" if attempt else f"{self.url}: {text}")

    def _post(self, body: bytes) -> tuple[bool, str, bytes | None]:
        """Whether another try may help, what went wrong, and the reply where nothing did."""
        place = urlsplit(self.url)
        assert place.hostname is not None
        # never through a proxy, and a redirect is not followed: what is said stays on this machine
        connection = http.client.HTTPConnection(place.hostname, place.port)
        try:
            path = place.path or "/"
            connection.request("POST", f"{path}?{place.query}" if place.query else path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            reply = response.read(LARGEST + 1)
        except (OSError, http.client.HTTPException) as error:
            return True, f"{type(error).__name__}: {error}"[:EXCERPT], None
        finally:
            connection.close()
        if response.status != 200:
            return response.status == 429 or response.status >= 500, f"status {response.status}", None
        if len(reply) > LARGEST:
            return False, f"a reply of more than {LARGEST} bytes", None
        return False, "", reply

    def _number(self, reply: bytes) -> float:
        try:
            said = json.loads(reply)
        except (ValueError, RecursionError):
            said = None
        value = said.get(self.field) if isinstance(said, dict) else said
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            shown = reply[:EXCERPT].decode(errors="replace")
            raise ValueError(f'{self.url}: replied {shown!r}, neither a number nor an object with one under "{self.field}"')
        return float(value)


def _is_here(place: SplitResult) -> bool:
    """Whether an address is this machine's own."""
    try:
        host, port = place.hostname or "", place.port
        return port is not None and (host == "localhost" or ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False
