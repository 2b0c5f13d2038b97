"""A scorer behind HTTP on this machine: numbers, and everything that is none, each named and costing one reward."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from test_rewards import rollout
from truing.config import ConfigError, load
from truing.recipes.ppo import Config
from truing.rewards.base import Failure
from truing.rewards.outside import OutsideRule
from truing.rewards.remote import LARGEST, RemoteScore


class Scorer(BaseHTTPRequestHandler):
    """Replies as the answer asks for."""

    asked: ClassVar[list[dict]] = []
    busy = 0

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(said)
        status, body = 200, {"reward": len(said["response"]), "other": 7}
        match said["response"]:
            case "bare":
                body = 1.5
            case "text":
                body = "ten"
            case "nan":
                body = float("nan")
            case "true":
                body = {"reward": True}
            case "huge":
                body = [0] * LARGEST
            case "missing":
                status = 404
            case "moved":
                status = 302
            case "busy":
                type(self).busy += 1
                status = 503 if type(self).busy % 3 else 200
            case "down":
                status = 500
            case "hang":
                threading.Event().wait(20)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        with suppress(BrokenPipeError):  # whoever hung has been given up
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scorer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()


def test_it_gives_the_number_of_what_it_was_posted(url: str) -> None:
    rule = RemoteScore(url=url, wait=0.0)
    assert rule.score(rollout("four", right="4")) == 4.0
    assert Scorer.asked[-1] == {"prompt": [{"role": "user", "content": "2+2?"}], "response": "four", "tags": {"right": "4"}}
    assert rule.score(rollout("bare")) == 1.5
    assert RemoteScore(url=url, field="other").score(rollout("x")) == 7.0


def test_what_passes_is_tried_again_and_what_does_not_is_named(url: str) -> None:
    rule = RemoteScore(url=url, wait=0.0)
    assert rule.score(rollout("busy")) == 4.0, "the third try"
    before = len(Scorer.asked)
    for said, why in (("down", r"status 500 \(3 tries\)"), ("missing", "status 404$"), ("moved", "status 302$")):
        with pytest.raises(ValueError, match=why):
            rule.score(rollout(said))
    assert len(Scorer.asked) == before + 5, "a refusal and a redirect are final"
    for said in ("text", "nan", "true"):
        with pytest.raises(ValueError, match='neither a number nor an object with one under "reward"'):
            rule.score(rollout(said))
    with pytest.raises(ValueError, match="a reply of more than"):
        rule.score(rollout("huge"))
    with pytest.raises(ValueError, match=r"ConnectionRefusedError.*\(3 tries\)"):
        RemoteScore(url="http://127.0.0.1:9/score", wait=0.0).score(rollout("x"))


@pytest.mark.parametrize(
    "url", ["http://example.org:80/", "https://127.0.0.1:80/", "http://127.0.0.1/", "127.0.0.1:80", "http://10.0.0.1:1"]
)
def test_an_address_that_is_not_on_this_machine_is_refused_with_the_setting(url: str) -> None:
    with pytest.raises(ValueError, match="a scorer runs on this machine"):
        RemoteScore(url=url)
    with pytest.raises(ConfigError, match="a scorer runs on this machine"):
        load(Config, overrides=["data.path=a.csv", "reward.far=remote", f"reward.far.url={url}"])


def test_as_a_part_of_the_reward_one_that_hangs_or_fails_costs_one_reward(url: str) -> None:
    scorer = OutsideRule(RemoteScore(url=url, wait=0.0), seconds=2.0)
    found = scorer([rollout("ab"), rollout("hang"), rollout("text"), rollout("abc")])
    scorer.close()
    assert (found[0], found[3]) == (2.0, 3.0)
    assert found[1] == Failure(fault="timed out", text="after 2 s")
    assert isinstance(found[2], Failure)
    assert found[2].fault == "raised"
