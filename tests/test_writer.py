"""Writers: the same call for a policy in this process and for a server, problems named answer by answer."""

from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from chat_server import serving
from truing.data.chat import ChatTokenizer
from truing.endpoint import Client
from truing.models.policy import Policy
from truing.records import Message, Prompt
from truing.rollouts.sampler import Decoding
from truing.rollouts.writer import LocalWriter, RemoteWriter, Writer


def prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


@pytest.fixture(scope="module")
def local(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> LocalWriter:
    chat = ChatTokenizer.of(tiny_tokenizer)
    return LocalWriter(policy=Policy(tiny_llama, layout="plain"), chat=chat, decoding=Decoding(max_tokens=6, temperature=1.0))


def test_a_policy_writes_so_many_answers_and_the_same_again(local: LocalWriter) -> None:
    prompts = [prompt("The kettle"), prompt("Paris")]
    found = local(prompts, samples=3, seed=5)
    assert [len(answers) for answers in found] == [3, 3]
    assert len({said.text for answers in found for said in answers}) > 1
    assert all(said.stop in ("end", "length") and not said.problem for answers in found for said in answers)
    assert local(prompts, samples=3, seed=5) == found
    assert local(prompts, samples=3, seed=6) != found


def test_a_prompt_without_room_is_a_problem_of_its_answers_alone(local: LocalWriter) -> None:
    long, short = local([prompt("far " * 600), prompt("Paris")], samples=2, seed=0)
    assert [said.stop for said in long] == [None, None]
    assert "context leaves room for 506" in long[0].problem
    assert [said.problem for said in short] == ["", ""]


def test_a_server_writes_and_its_failures_are_named() -> None:
    with serving(lambda body: f"{body['messages'][-1]['content']} {body['temperature']}") as server:
        client = Client(server.endpoint(retries=0, concurrent=1), sleep=lambda seconds: None)
        writer: Writer = RemoteWriter(client=client, decoding=Decoding(max_tokens=9, temperature=0.7))
        server.faults = ["500"]
        (first, second), (third, _) = writer([prompt("a"), prompt("b")], samples=2, seed=0)
    assert first.problem.startswith("server error: status 500")
    assert (first.text, first.stop) == ("", None)
    assert (second.text, second.stop, second.problem) == ("a 0.7", "end", "")
    assert third.text == "b 0.7"
    assert len({body["seed"] for body in server.seen}) == 2
    assert [body["max_tokens"] for body in server.seen] == [9] * 4
    assert writer.name == "tiny"


def test_identity_follows_what_decides_the_answers(local: LocalWriter) -> None:
    assert replace(local, weights="other").identity != local.identity
    assert replace(local, decoding=Decoding(max_tokens=7)).identity != local.identity
    assert replace(local, name="called otherwise").identity == local.identity
