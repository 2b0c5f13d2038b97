"""One exchange with a server, and patience: what passes is tried again with back-off, what stays is a named failure.

Plain `http.client`: a body is read up to a limit and a deadline, duplicate keys are seen, no redirect carries the key elsewhere.
Left out: what is asked, and what a reply must hold.
"""

import http.client
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from truing.data.problems import BadValueError
from truing.data.strict_json import parse_row
from truing.endpoint.asking import PASSING, Endpoint, Failed, Fault
from truing.randomness import counted_seed

T = TypeVar("T")

LARGEST = 4 << 20
"""Bytes of a reply; one that is longer is none."""
EXCERPT = 200


class FaultError(Exception):
    """One try that came to nothing, and how much patience the server asks for."""

    def __init__(self, fault: Fault, text: str, patience: float = 0.0) -> None:
        super().__init__(text)
        self.fault: Fault = fault
        self.patience = patience


class Transport:
    """Posts JSON to an endpoint. Raises ValueError for settings that no server can be found by."""

    def __init__(self, endpoint: Endpoint, *, sleep: Callable[[float], None] = time.sleep) -> None:
        place = urlsplit(endpoint.url)
        if place.scheme not in ("http", "https") or not place.hostname or not _port(place):
            raise ValueError(f"endpoint url {endpoint.url!r}: write it as http://HOST:PORT/v1 or https://HOST/v1")
        self.endpoint = endpoint
        self._place = place
        self._sleep = sleep
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", **_authorization(endpoint)}

    def patiently(self, key: str, once: Callable[[int], T], count: Callable[[Fault], None] = lambda fault: None) -> T | Failed:
        """What `once` gives, told which try it is, the first time that it raises no FaultError; or the last failure.

        `key` (hexadecimal) decides how long is waited between tries; `count` hears of each fault.
        """
        for attempt in range(self.endpoint.retries + 1):
            try:
                return once(attempt)
            except FaultError as error:
                count(error.fault)
                last = attempt == self.endpoint.retries
                if last or error.fault not in PASSING or error.patience > self.endpoint.longest_wait:
                    return Failed(fault=error.fault, text=str(error), tries=attempt + 1)
                self._sleep(max(error.patience, self._backoff(key, attempt)))
        raise AssertionError("the last try returns")

    def _backoff(self, key: str, attempt: int) -> float:
        """Twice as long after each try, up to a half less by chance, so that many askers do not come back together."""
        share = counted_seed(int(key[:12], 16), "back-off", attempt) / 2**63
        return min(self.endpoint.longest_wait, self.endpoint.wait * 2.0**attempt) * (1 - share / 2)

    def post(self, path: str, body: bytes) -> tuple[http.client.HTTPMessage, bytes]:
        """Headers and body of a reply with status 200; over within the endpoint's seconds, however slowly the server drips.

        Raises FaultError. A path with a leading slash counts from the server's root, any other from the endpoint's url.
        """
        connection, target = self._connection(path)
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
                raise FaultError("timed out", f"no connection after {self.endpoint.seconds:g} s") from None
            except (OSError, http.client.HTTPException) as error:
                raise FaultError("cannot connect", str(error)[:EXCERPT]) from None
            timer.start()
            connection.request("POST", target, body, self._headers)
            response = connection.getresponse()
            data = response.read(LARGEST + 1)
            if late.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise FaultError("timed out", f"after {self.endpoint.seconds:g} s") from None
            raise FaultError("connection lost", f"{type(error).__name__}: {error}"[:EXCERPT]) from None
        finally:
            timer.cancel()
            connection.close()
        if response.status != 200:
            raise _refusal(response.status, response.headers, data)
        return response.headers, data

    def _connection(self, path: str) -> tuple[http.client.HTTPConnection, str]:
        """A connection, through the proxy of the environment where there is one, and what is asked for on it."""
        place, host = self._place, str(self._place.hostname)
        secure, port = place.scheme == "https", _port(place)
        base = place.path.rstrip("/")
        target = f"{base.removesuffix('/v1')}{path}" if path.startswith("/") else f"{base}/{path}"
        target += f"?{place.query}" if place.query else ""
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


def _refusal(status: int, headers: http.client.HTTPMessage, body: bytes) -> FaultError:
    said = f"status {status}: {' '.join(body[:EXCERPT].decode(errors='replace').split())}"
    if status == 429:
        return FaultError("too many requests", said, _retry_after(headers))
    if status in (408, 409, 425) or status >= 500:
        return FaultError("server error", said, _retry_after(headers))
    if 200 < status < 300:
        return FaultError("malformed reply", said)
    return FaultError("redirected" if 300 <= status < 400 else "refused", said)


def _retry_after(headers: http.client.HTTPMessage) -> float:
    """Seconds that the server asks to wait, given as such or as a date; 0 where it does not say."""
    text = str(headers.get("retry-after", "")).strip()
    with suppress(ValueError):
        return max(0.0, float(text)) if float(text) < float("inf") else 0.0
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def row_of(headers: http.client.HTTPMessage, body: bytes) -> Mapping[str, object]:
    """A reply that is one JSON object; FaultError for any other."""
    if len(body) > LARGEST:
        raise malformed(f"more than {LARGEST >> 20} MiB", body)
    kind = headers.get("content-type", "")
    if "json" not in kind.lower():
        raise malformed(f"of type {kind or 'unknown'}, not JSON", body)
    try:
        return parse_row(body)
    except BadValueError as error:
        raise malformed(str(error), body) from None


def malformed(why: str, body: bytes) -> FaultError:
    """What a reply lacks, with its beginning."""
    return FaultError("malformed reply", f"{why}: {' '.join(body[:EXCERPT].decode(errors='replace').split())}"[:EXCERPT])
