"""Who critiques, revises and judges in place of people: a model here, or one behind an endpoint, loaded when first asked."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from truing.endpoint import Client, Endpoint, Replies
from truing.evals.tasks.evaluate import Model
from truing.judges import Judge, JudgePrompt, LocalJudge, RemoteJudge
from truing.recipes.fit import model_folder, template_of
from truing.recipes.settings import device, torch_dtype
from truing.rollouts.sampler import Decoding
from truing.rollouts.writer import LocalWriter, RemoteWriter, Writer
from truing.runs.durable import to_json

TEMPLATES = {"local": "letter", "remote": "structured"}
"""The packaged wording in which each kind of judge is asked."""


def model_of(place: str, dtype: str) -> Model:
    """A run, a model's folder or a hub name as a model that is loaded when it is first asked."""
    return Model(
        name=place,
        path=model_folder(place),
        dtype=torch_dtype(dtype),  # type: ignore[arg-type]
        device=device(),
        template=template_of(Path(place)),
    )


@dataclass
class LocalFeedback:
    """A model in this process; it judges by the log-probabilities of its verdict."""

    model: Model
    progress: Callable[[int, int], None] | None = None
    retries: bool = False
    """Whether what failed may go well at another time."""

    @property
    def name(self) -> str:
        return self.model.name

    @cached_property
    def identity(self) -> str:
        """Of the model's files."""
        return self.model.identity

    def writer(self, decoding: Decoding) -> Writer:
        """Writes as the model does."""
        return LocalWriter(policy=self.model.policy, chat=self.model.chat, decoding=decoding, name=self.name, weights=self.identity)

    def judge(self, rubric: str) -> Judge:
        """Judges by what the rubric says counts."""
        prompt = JudgePrompt.of("overall", TEMPLATES["local"])
        return LocalJudge(
            policy=self.model.policy,
            chat=self.model.chat,
            prompt=JudgePrompt(rubric=rubric, template=prompt.template),
            name=self.name,
            weights=self.identity,
        )


class RemoteFeedback:
    """A model behind an endpoint; its replies are kept in a file, so that none is paid for twice."""

    retries = True

    def __init__(self, endpoint: Endpoint, replies: Path) -> None:
        self._replies = Replies(replies)
        self.client = Client(endpoint, self._replies)
        self.name = endpoint.model
        self.identity = hashlib.sha256(to_json([endpoint.url, endpoint.model])).hexdigest()

    def writer(self, decoding: Decoding) -> Writer:
        """Writes as the model does."""
        return RemoteWriter(client=self.client, decoding=decoding)

    def judge(self, rubric: str) -> Judge:
        """Judges by what the rubric says counts, in a reply of which one field counts."""
        prompt = JudgePrompt.of("overall", TEMPLATES["remote"])
        return RemoteJudge(client=self.client, prompt=JudgePrompt(rubric=rubric, template=prompt.template))

    def close(self) -> None:
        """Closes the file of replies."""
        self._replies.close()


FeedbackModel = LocalFeedback | RemoteFeedback
OnFailure = Literal["stop", "skip"]


def refuse_missing(problems: Sequence[str], of: FeedbackModel, on_failure: OnFailure) -> None:
    """Raises ValueError where a model behind an endpoint has failed in the end and its word is not to be left out.

    Nothing of the chunk is kept then but the replies that came. A model in this process fails the same way every time.
    """
    if problems and of.retries and on_failure == "stop":
        raise ValueError(
            f"{of.name}: {len(problems)} replies are missing, such as: {problems[0]}. What came is kept, and the same command asks "
            f"for the rest; on_failure=skip leaves them out"
        )
