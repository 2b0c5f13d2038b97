"""The verdict of a reply that has a form: one JSON object, its field `verdict`, and nothing else.

A verdict that an answer contains cannot decide: a judge that quotes it does so inside a string; a reply that is more than one
object, or in which a key stands twice (an answer quoted without escapes), is none. Judges in free text: `truing.judges.marks`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from truing.data.problems import BadValueError
from truing.data.strict_json import parse_row

VERDICTS: Mapping[str, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}
"""What a verdict says of the answer that was shown first."""
VERDICT = {"type": "string", "enum": list(VERDICTS)}
SCHEMA: Mapping[str, object] = {
    "type": "object",
    "properties": {"verdict": VERDICT},
    "required": ["verdict"],
    "additionalProperties": False,
}
REASONED: Mapping[str, object] = {
    "type": "object",
    "properties": {"reasoning": {"type": "string"}, "verdict": VERDICT},
    "required": ["reasoning", "verdict"],
    "additionalProperties": False,
}
"""Reasoning stands first, so that the verdict follows from it and not the other way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a structured reply says. Example: `read_verdict('{"verdict": "A"}').probability == 1.0`."""

    probability: float
    reasoning: str = ""


def read_verdict(text: str) -> Verdict:
    """The verdict of a reply. Raises ValueError where it has none: a missing one is never counted as one.

    A fence of three backticks around the whole reply is let pass, as servers without structured output are given to it.
    """
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        bare = bare[:-3].partition("\n")[2].strip()
    try:
        row = parse_row(bare.encode())
    except (BadValueError, UnicodeEncodeError) as error:
        raise ValueError(f"the reply is not one JSON object: {error}") from None
    said = row.get("verdict")
    if not isinstance(said, str) or said not in VERDICTS:
        raise ValueError(f"the reply's field verdict is {said!r:.60}, not one of {', '.join(VERDICTS)}")
    reasoning = row.get("reasoning", "")
    return Verdict(probability=VERDICTS[said], reasoning=reasoning if isinstance(reasoning, str) else "")
