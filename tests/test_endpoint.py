"""A chat endpoint asked patiently: what passes is asked again, what stays is named, what was said is never asked for twice."""

import json
from pathlib import Path

import pytest

from chat_server import FAULTS, serving
from truing.endpoint import Ask, Client, Endpoint, Failed, Replies, Reply
from truing.records import Message


def ask(text: str, **more: object) -> Ask:
    return Ask(messages=(Message(role="user", content=text),), **more)  # type: ignore[arg-type]


def last(body: object) -> str:
    return str(body["messages"][-1]["content"])  # type: ignore[index]


def test_a_question_is_sent_as_openai_has_it_and_the_reply_counted() -> None:
    with serving(lambda body: f"You said {last(body)}.") as server:
        client = Client(server.endpoint(input_price=100.0, output_price=1000.0))
        (reply,) = client.ask([ask("hello", max_tokens=7, temperature=0.5, seed=3, schema={"type": "object"})])
    assert reply == Reply(text="You said hello.", stop="end", read=10, said=2, model="tiny-1")
    (seen,) = server.seen
    assert seen == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": {"type": "object"}}},
    }
    assert server.keys == [""]
    assert client.spent.cost == pytest.approx(10 * 100e-6 + 2 * 1000e-6)
    assert "1 asked (0 kept from before, 0 failed), 1 requests; 10 tokens read and 2 said; cost 0.0030" in str(client.spent)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_asked_again(fault: str) -> None:
    with serving(lambda body: "good") as server:
        server.faults = [fault]
        waits: list[float] = []
        client = Client(server.endpoint(seconds=0.25), sleep=waits.append)
        (reply,) = client.ask([ask("hello")])
    assert isinstance(reply, Reply), reply
    assert reply.text == "good"
    assert (client.spent.requests, client.spent.failed, client.spent.faults.total()) == (2, 0, 1)
    assert len(waits) == 1
    if fault == "429":
        assert waits == [1.0]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_pass_is_a_named_failure_and_no_reply(fault: str, tmp_path: Path) -> None:
    with serving(lambda body: "good") as server:
        server.faults = [fault, fault]
        replies = Replies(tmp_path / "replies.jsonl")
        client = Client(server.endpoint(seconds=0.25, retries=1), replies, sleep=lambda seconds: None)
        (reply,) = client.ask([ask("hello")])
    assert isinstance(reply, Failed)
    assert reply.tries == 2
    assert "2 tries" in str(reply)
    assert (tmp_path / "replies.jsonl").read_bytes() == b""
    assert client.spent.failed == 1


@pytest.mark.parametrize(("status", "fault"), [("401", "refused"), ("400", "refused"), ("302", "redirected"), ("429", "too many")])
def test_what_will_not_pass_is_not_asked_again(status: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a redirect carry the key elsewhere, nor is a server waited for that asks for hours."""
    monkeypatch.setenv("TINY_KEY", " secret\n")
    with serving(lambda body: "good") as server:
        server.faults = ["0429" if status == "429" else status]
        client = Client(server.endpoint(key_variable="TINY_KEY"), sleep=lambda seconds: None)
        (reply,) = client.ask([ask("hello")])
    assert isinstance(reply, Failed)
    assert reply.fault.startswith(fault)
    assert server.keys == ["Bearer secret"]
    assert "secret" not in str(reply)


def test_a_server_that_is_not_there() -> None:
    with serving(lambda body: "good") as server:
        endpoint = server.endpoint(retries=1)
    (reply,) = Client(endpoint, sleep=lambda seconds: None).ask([ask("hello")])
    assert isinstance(reply, Failed)
    assert reply.fault == "cannot connect"


def test_back_off_doubles_and_is_the_same_each_time() -> None:
    def waits() -> list[float]:
        with serving(lambda body: "good") as server:
            server.faults = ["500"] * 5
            found: list[float] = []
            Client(Endpoint(url=server.url, model="m", wait=8.0, longest_wait=40.0, retries=5), sleep=found.append)._settle(
                "ab" * 32, ask("hello"), str
            )
        return found

    first = waits()
    assert first == waits()
    assert all(most / 2 <= wait <= most for wait, most in zip(first, [8.0, 16.0, 32.0, 40.0, 40.0], strict=True))


def test_a_reply_that_does_not_say_what_was_asked_is_asked_again_with_the_next_seed() -> None:
    def number(text: str) -> object:
        return json.loads(text)["n"] + 0 if "n" in text else int("no n")

    with serving(lambda body: '{"n": 3}' if body.get("seed") == 6 else "three") as server:
        client = Client(server.endpoint(), sleep=lambda seconds: None)
        (reply,) = client.ask([ask("hello", seed=5)], check=number)
        (lost,) = client.ask([ask("bye")], check=lambda text: int("no verdict"))
    assert isinstance(reply, Reply)
    assert reply.text == '{"n": 3}'
    assert isinstance(lost, Failed)
    assert (lost.fault, lost.tries) == ("malformed reply", 7)


def test_replies_are_kept_by_everything_that_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "replies.jsonl"
    asks = [ask("a"), ask("b"), ask("a"), ask("a", place=1), ask("a", temperature=0.5)]
    with serving(last) as server:
        replies = Replies(path)
        first = Client(server.endpoint(), replies).ask(asks)
        replies.close()
        assert len(server.seen) == 4
        again = Client(server.endpoint(concurrent=1), Replies(path))
        assert again.ask(asks) == first
        assert (len(server.seen), again.spent.kept, again.spent.requests) == (4, 5, 0)
        Client(server.endpoint(model="other"), Replies(path)).ask(asks[:1])
        assert len(server.seen) == 5


def test_half_a_line_is_cut_off_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    replies = Replies(path)
    replies.put("k", Reply(text="a", stop="end"))
    replies.close()
    with path.open("ab") as file:
        file.write(b'{"key": "half')
    assert Replies(path).get("k") == Reply(text="a", stop="end")
    path.write_bytes(b'{"key": "k"}\n')
    with pytest.raises(ValueError, match=r"replies.jsonl:1: is no kept reply"):
        Replies(path)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"url": "http://localhost:port/v1"}, "write it as http://HOST:PORT/v1"),
        ({"url": "localhost:8000"}, "write it as http://HOST:PORT/v1"),
        ({"url": "http://localhost/v1", "key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY: this environment variable is empty"),
    ],
)
def test_wrong_settings_name_their_remedy(settings: dict[str, str], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        Client(Endpoint(model="m", **settings))  # type: ignore[arg-type]
