"""Critique and revision: an answer, what is wrong with it by a sampled principle, a better one, and again (Bai et al. 2022).

The supervised stage of Constitutional AI (arXiv 2212.08073, section 3). Every intermediate is kept. Departures: a critique
and a revision are asked for in a turn each, after worked examples of the same kind, instead of in one running text; principles are
drawn from those whose scope the request is in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truing.config import load
from truing.constitution.principles import Constitution, Principle
from truing.randomness import counted_seed
from truing.records import Demonstration, Message, Messages, Prompt
from truing.rollouts.writer import Said, Writer

SHOTS = Path(__file__).parent / "shots.yaml"
"""The worked examples that come with the package."""
CRITIQUE = (
    "Request: {request}\n\nAnswer: {answer}\n\nPrinciple: {principle}\n\n"
    "In one or two sentences, say how the answer falls short of the principle."
)
REVISION = (
    "Request: {request}\n\nAnswer: {answer}\n\nPrinciple: {principle}\n\nCritique: {critique}\n\n"
    "Write a better answer to the request, one that keeps to the principle. Write only the answer."
)
ENDS = ".!?…。！？"


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A worked example of one round."""

    request: str
    """What was asked."""
    answer: str
    """The answer that falls short."""
    principle: str
    """The text of the principle."""
    critique: str
    """How it falls short."""
    revision: str
    """The better answer."""


@dataclass(frozen=True, kw_only=True)
class Shots:
    """Worked examples, in the order in which they are shown; none is possible."""

    shots: tuple[Shot, ...]
    """The examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One critique and the revision that follows it."""

    principle: str
    """The id of the principle."""
    critique: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Revised:
    """An answer with all that became of it. Example: `Revised(prompt=p, answer="Look.", rounds=())` was not revised."""

    prompt: Prompt
    answer: str
    rounds: tuple[Round, ...]
    problem: str = ""
    """Why it went no further; empty where it came to its end."""
    missing: bool = False
    """Whether the critic failed to reply, which may go well at another time, and did not reply badly."""

    @property
    def last(self) -> str:
        """The last revision, or the answer where there is none."""
        return self.rounds[-1].revision if self.rounds else self.answer

    def demonstration(self, provenance: Mapping[str, str]) -> Demonstration:
        """The last revision as something to imitate; its tags say which principles led there, and who wrote. Asserts no problem."""
        assert not self.problem, "what failed is no demonstration"
        tags = {**self.prompt.tags, **provenance, "principles": " ".join(one.principle for one in self.rounds)}
        said = Message(role="assistant", content=self.last)
        return Demonstration(messages=(*self.prompt.messages, said), origin=self.prompt.origin, tags=tags)

    def as_json(self) -> dict[str, Any]:
        """As it is kept; the prompt is kept by who keeps it."""
        rounds = [{"principle": one.principle, "critique": one.critique, "revision": one.revision} for one in self.rounds]
        return {"answer": self.answer, "rounds": rounds, "problem": self.problem, "missing": self.missing}

    @classmethod
    def from_json(cls, prompt: Prompt, raw: Mapping[str, Any]) -> "Revised":
        """What `as_json` gave."""
        rounds = tuple(Round(**one) for one in raw["rounds"])
        return cls(prompt=prompt, answer=raw["answer"], rounds=rounds, problem=raw["problem"], missing=raw.get("missing", False))


def read_shots(path: Path = SHOTS) -> tuple[Shot, ...]:
    """The worked examples of a file. Raises ValueError with file and line for whatever is missing or unknown."""
    return load(Shots, file=path).value.shots


@dataclass(frozen=True, kw_only=True)
class Reviser:
    """Answers prompts, revises the answers. Example: `Reviser(author=w, critic=w, constitution=c, shots=())(prompts, seed=0)`."""

    author: Writer
    """Gives the first answers."""
    critic: Writer
    """Critiques and revises; the same model as the author, or a stronger one."""
    constitution: Constitution
    shots: tuple[Shot, ...]
    rounds: int = 1
    """Critiques and revisions of each answer; 0 leaves answers as they are."""

    def __call__(self, prompts: Sequence[Prompt], *, seed: int, places: Sequence[int] | None = None) -> list[Revised]:
        """One for each prompt, in their order; `places` are the prompts' numbers among all, by which principles are drawn."""
        places = range(len(prompts)) if places is None else places
        first = self._write(self.author, [prompt.messages for prompt in prompts], counted_seed(seed, "answers", *places[:1]))
        now = [
            Revised(prompt=prompt, answer=text, rounds=(), problem=problem and f"answer: {problem}", missing=missing)
            for prompt, (text, problem, missing) in zip(prompts, first, strict=True)
        ]
        for number in range(self.rounds):
            going = [i for i, one in enumerate(now) if not one.problem]
            chosen = {i: self.drawn(prompts[i], seed, places[i], number) for i in going}
            stuck = [i for i in going if chosen[i] is None]
            for i in stuck:
                now[i] = _failed(now[i], "no principle applies; give one the scope always")
            taken = {i: principle for i, principle in chosen.items() if principle is not None}
            self._round(now, taken, counted_seed(seed, "round", number, *places[:1]))
        return now

    def drawn(self, prompt: Prompt, seed: int, place: int, number: int) -> Principle | None:
        """The principle of a prompt's round: none twice before all that apply have had their turn; None where none applies."""
        applying = self.constitution.applying(prompt.messages)
        order = sorted(
            applying, key=lambda one: (counted_seed(seed, f"principle {one.id}", place, number // len(applying)), one.id)
        )
        return order[number % len(order)] if order else None

    def _round(self, now: list[Revised], chosen: Mapping[int, Principle], seed: int) -> None:
        """One critique and one revision of each of these, put in their places."""
        if not chosen:
            return
        asked = [self._asked(CRITIQUE, now[i], principle, "") for i, principle in chosen.items()]
        said = self._write(self.critic, asked, counted_seed(seed, "critique"))
        critiques = dict(zip(chosen, said, strict=True))
        for i, (_, problem, missing) in critiques.items():
            if problem:
                now[i] = _failed(now[i], f"critique {len(now[i].rounds) + 1}: {problem}", missing)
        going = [i for i in chosen if not now[i].problem]
        if not going:
            return
        asked = [self._asked(REVISION, now[i], chosen[i], critiques[i][0]) for i in going]
        for i, (text, problem, missing) in zip(going, self._write(self.critic, asked, counted_seed(seed, "revision")), strict=True):
            if problem:
                now[i] = _failed(now[i], f"revision {len(now[i].rounds) + 1}: {problem}", missing)
                continue
            done = Round(principle=chosen[i].id, critique=critiques[i][0], revision=text)
            now[i] = Revised(prompt=now[i].prompt, answer=now[i].answer, rounds=(*now[i].rounds, done))

    def _asked(self, wording: str, one: Revised, principle: Principle, critique: str) -> Messages:
        """The worked examples as turns, and what is asked now."""
        turns: list[Message] = []
        for shot in self.shots:
            turns.append(_user(wording.format(**asdict(shot))))
            turns.append(Message(role="assistant", content=shot.critique if wording is CRITIQUE else shot.revision))
        request, told = _conversation(one.prompt.messages), worded(principle)
        return (*turns, _user(wording.format(request=request, answer=one.last, principle=told, critique=critique)))

    def _write(self, writer: Writer, talks: Sequence[Messages], seed: int) -> list[tuple[str, str, bool]]:
        """Text and problem of one answer to each conversation, and whether the writer failed."""
        written = writer([Prompt(messages=talk) for talk in talks], samples=1, seed=seed)
        return [_kept(answers[0]) for answers in written]


def whole_sentences(text: str) -> str:
    """A cut text up to its last whole sentence; empty without one. Example: `whole_sentences("Yes. It is o") == "Yes."`."""
    end = max(text.rfind(mark) for mark in ENDS)
    return text[: end + 1].strip()


def _kept(said: Said) -> tuple[str, str, bool]:
    """What is gone on with: a finished text, of a cut one its whole sentences."""
    if said.problem:
        return "", said.problem, True
    text = said.text.strip() if said.stop == "end" else whole_sentences(said.text)
    return text, "" if text else "the writer came to no whole sentence", False


def _failed(one: Revised, problem: str, missing: bool = False) -> Revised:
    return Revised(prompt=one.prompt, answer=one.answer, rounds=one.rounds, problem=problem, missing=missing)


def _conversation(messages: Messages) -> str:
    """A request of one turn as it is; more turns with their roles."""
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def worded(principle: Principle) -> str:
    """The principle as a model is told it: with when it applies and how edge cases are seen, where it says so."""
    when = "" if principle.scope.when == "always" else f" (Where {principle.scope.when}.)"
    return principle.text + when + (f" {principle.guidance}" if principle.guidance else "")


def _user(content: str) -> Message:
    return Message(role="user", content=content)
