"""The words in which a judge is asked: a rubric (what counts) in a template (how it is put), both plain text files.

Prompts and answers are others' words. They stand between marks that none of them holds, since the marks are made of their hash;
they are put in at one go, so that a placeholder inside an answer is only text.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from truing.judges.judgement import Comparison
from truing.records import Message, Messages

TEMPLATES, RUBRICS = Path(__file__).parent / "templates", Path(__file__).parent / "rubrics"
PLACES = ("rubric", "conversation", "first", "second", "mark")
NEEDED = ("{conversation}", "{first}", "{second}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompt:
    """A rubric in a template. Example: `JudgePrompt.of("overall", "letter").messages(comparison)`."""

    rubric: str
    """What counts, as sentences to the judge: `Prefer the answer that helps more.`"""
    template: str
    """Text with {rubric}, {conversation}, {first}, {second}, and {mark} for the lines that part them."""

    def __post_init__(self) -> None:
        missing = [place for place in NEEDED if place not in self.template]
        unknown = sorted(set(re.findall(r"\{(\w+)\}", self.template)) - set(PLACES))
        if missing or unknown:
            said = f"lacks {', '.join(missing)}" if missing else f"has {{{unknown[0]}}}, which stands for nothing"
            raise ValueError(f"the judge's template {said}; it may hold {', '.join(f'{{{place}}}' for place in PLACES)}")

    @classmethod
    def of(cls, rubric: str, template: str) -> "JudgePrompt":
        """By the names of packaged texts, or by the paths of files. Raises ValueError naming those that there are."""
        return cls(rubric=text_of(rubric, RUBRICS, "rubric"), template=text_of(template, TEMPLATES, "template"))

    def messages(self, comparison: Comparison) -> Messages:
        """One user turn."""
        said = "\n".join(f"{turn.role}: {turn.content}" for turn in comparison.prompt.messages)
        texts = {"rubric": self.rubric, "conversation": said, "first": comparison.first, "second": comparison.second}
        return (Message(role="user", content=filled(self.template, texts)),)


def filled(template: str, texts: Mapping[str, str]) -> str:
    """The template with its places filled at one go, and marks that stand in none of the texts."""
    values = {**texts, "mark": mark_for(texts)}
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), template)


def mark_for(texts: Mapping[str, str]) -> str:
    """A mark such as `==3f9c21ab==` that none of the texts holds; the same for the same texts."""
    digest = hashlib.sha256(repr(sorted(texts.items())).encode(errors="surrogatepass")).hexdigest()
    while any(digest[:8] in text for text in texts.values()):
        digest = hashlib.sha256(digest.encode()).hexdigest()
    return f"=={digest[:8]}=="


def text_of(name: str, folder: Path, what: str) -> str:
    """A packaged text by its name, or a file by its path; white space around it does not count."""
    packaged = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    path = packaged.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"{what}={name}: choose one of {', '.join(packaged)}, or the path of a text file")
    return path.read_text().strip()
