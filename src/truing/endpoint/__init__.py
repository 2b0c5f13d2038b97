"""Chat endpoints as OpenAI, vLLM and llama.cpp serve them: asked patiently, each question once. No torch here."""

from truing.endpoint.asking import PASSING, Ask, Endpoint, Failed, Fault, Reply, Spent
from truing.endpoint.client import Check, Client
from truing.endpoint.replies import Replies

__all__ = ["PASSING", "Ask", "Check", "Client", "Endpoint", "Failed", "Fault", "Replies", "Reply", "Spent"]
