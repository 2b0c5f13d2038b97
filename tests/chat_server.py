"""A chat endpoint on the loopback for tests: it answers as a function says, and can fail in the ways that servers do."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from truing.endpoint import Endpoint

Answer = Callable[[Mapping[str, Any]], str]
"""From a request's body to the text that is answered."""


def completion(text: object, **more: object) -> dict[str, object]:
    """A reply as OpenAI's servers give it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return {"id": "1", "model": "tiny-1", "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}


def _whole(request: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, kind: str = "application/json") -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def _status(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler, str], None]:
    def fail(request: BaseHTTPRequestHandler, text: str) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "4")
        request.end_headers()
        request.wfile.write(b"busy")

    return fail


def _sends(value: object) -> Callable[[BaseHTTPRequestHandler, str], None]:
    return lambda request, text: _whole(request, value if isinstance(value, bytes) else json.dumps(value).encode())


def _of_text(body: Callable[[str], bytes]) -> Callable[[BaseHTTPRequestHandler, str], None]:
    return lambda request, text: _whole(request, body(text))


def _resets(request: BaseHTTPRequestHandler, text: str) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def _stops_half_way(request: BaseHTTPRequestHandler, text: str) -> None:
    whole = json.dumps(completion(text)).encode()
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(whole)))
    request.end_headers()
    request.wfile.write(whole[: len(whole) // 2])
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR)


def _drips(request: BaseHTTPRequestHandler, text: str) -> None:
    try:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + b"X: y\r\n" * 100:
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
            time.sleep(0.05)
    except OSError:
        return


def _hangs(request: BaseHTTPRequestHandler, text: str) -> None:
    time.sleep(1.5)


FAULTS: Mapping[str, Callable[[BaseHTTPRequestHandler, str], None]] = {
    "hangs": _hangs,
    "drips": _drips,
    "resets the connection": _resets,
    "stops half way": _stops_half_way,
    "is no HTTP": lambda request, text: request.wfile.write(b"SSH-2.0-OpenSSH\r\n") and None,
    "429": _status(429, Retry_After="1"),
    "500": _status(500),
    "503 with a date": _status(503, Retry_After="Fri, 01 Jan 2021 00:00:00 GMT"),
    "204": _status(204),
    "empty body": _sends(b""),
    "half JSON": _of_text(lambda text: json.dumps(completion(text)).encode()[:-20]),
    "HTML": lambda request, text: _whole(request, b"<html>Please log in</html>", kind="text/html"),
    "a wrong content type": lambda request, text: _whole(request, json.dumps(completion(text)).encode(), kind="text/plain"),
    "an error under 200": _sends({"error": {"message": "overloaded"}}),
    "a list": _sends([completion("x")]),
    "no choices": _sends({"choices": []}),
    "choices of another form": _sends({"choices": {"0": "x"}}),
    "content is null": _sends(completion(None)),
    "content is a number": _sends(completion(3)),
    "filtered": _of_text(lambda text: json.dumps(completion(text, finish_reason="content_filter")).encode()),
    "no ending": _of_text(lambda text: json.dumps(completion(text, finish_reason=None)).encode()),
    "duplicate keys": _of_text(lambda text: json.dumps(completion("x")).encode()[:-1] + b', "choices": []}'),
    "huge": _sends(b'{"choices": "' + b"x" * (5 << 20) + b'"}'),
    "nested deep": _sends(b'{"choices": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "not UTF-8": _sends(b'{"choices": [{"message": {"content": "\xff"}, "finish_reason": "stop"}]}'),
    "NaN": _of_text(lambda text: json.dumps(completion(text)).replace('"index": 0', '"index": NaN').encode()),
}
"""Ways to fail that may pass; each is answered well when asked again."""


@dataclass(kw_only=True)
class Server:
    """A running server and what it was asked."""

    url: str
    answer: Answer
    faults: list[str] = field(default_factory=list)
    """Names of FAULTS to show next, one a request; empty answers well."""
    seen: list[Mapping[str, Any]] = field(default_factory=list)
    """The body of each request."""
    keys: list[str] = field(default_factory=list)
    """What each request had for authorization."""
    lock: Any = field(default_factory=threading.Lock)

    def endpoint(self, **settings: Any) -> Endpoint:
        """Settings to ask it with, quick ones."""
        return Endpoint(**{"url": self.url, "model": "tiny", "seconds": 0.5, "wait": 0.001, "concurrent": 4, **settings})


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    """A server on a free port of the loopback, for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.seen.append(body)
                server.keys.append(self.headers.get("Authorization", ""))
                fault = server.faults.pop(0) if server.faults else ""
            self.close_connection = True
            if self.path != "/v1/chat/completions":
                _status(404)(self, "")
            elif fault:
                FAULTS.get(fault, _other(fault))(self, server.answer(body))
            else:
                _whole(self, json.dumps(completion(server.answer(body))).encode())

        def log_message(self, format: str, *args: object) -> None:
            return

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # a client that gave up

    http = Quiet(("127.0.0.1", 0), Handler)
    server = Server(url=f"http://127.0.0.1:{http.server_port}/v1", answer=answer)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def _other(fault: str) -> Callable[[BaseHTTPRequestHandler, str], None]:
    """A status by its number, or a text that is said in place of the answer."""
    if fault.isdigit():
        return _status(int(fault), Location="http://127.0.0.1:9/v1", Retry_After="9999")
    return lambda request, text: _whole(request, json.dumps(completion(fault)).encode())
