"""The 25 kinds of instruction of IFEval, each with what it needs to know and the check that an answer follows it.

The checks follow the published definition (Zhou et al. 2023, arXiv 2311.07911), its oddities included: a bullet may be `*` or `-`,
keywords are regular expressions, an answer whose language cannot be told follows. Sentences and words are told apart by rules of
this file instead of a downloaded model, which changes the count in a few answers of a hundred.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "etc", "inc", "ltd", "co", "corp", "e.g", "i.e", "a.m", "p.m"),
        *("u.s", "u.k", "jan", "feb", "mar", "apr", "aug", "sept", "oct", "nov", "dec", "no", "gen", "sen", "rep", "rev", "mt"),
        *("ft", "dept", "est", "approx", "fig", "vol", "ph.d", "d.c"),
    )
)
SENTENCE_END = re.compile(r"(\S+?)([.?!]+)[\"'”’)\]*_]*(?:\s+|\Z)")
CONTRACTION = re.compile(r"(?i)(?<=\w)(n't|'(?:s|m|d|ll|re|ve))\b")
PUNCTUATION = re.compile(r"[][(){}<>\"“”,;@#$%&?!*`]|\.\.\.|--|:(?!\d)|\.(?=\s*\Z)|(?<=\s)'|'(?=\s|\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of instruction."""

    check: Check
    needs: tuple[str, ...] = ()
    """The arguments that an instruction of this kind must bring."""


def sentences(text: str) -> int:
    """How many sentences there are: ends at `.`, `?`, `!` before white space, but not after an abbreviation or a lone initial.

    A line break alone ends none; a numeral with a full stop, as in a list, counts as one, as it does in the published checks.
    """
    count, end = 0, 0
    for match in SENTENCE_END.finditer(text):
        word = match[1].lstrip("\"'“‘([*_").lower()
        following = text[match.end() : match.end() + 1]
        if match[2] == "." and (word in ABBREVIATIONS or re.fullmatch(r"[a-z]", word)) and following and word != "i":
            continue
        if match[2].startswith("..") and following.islower():
            continue
        count, end = count + 1, match.end()
    return count + bool(text[end:].strip())


def words(text: str) -> list[str]:
    """Words as a treebank tells them apart: contractions in two, punctuation aside, hyphens kept."""
    return CONTRACTION.sub(r" \1", PUNCTUATION.sub(" ", text)).split()


def language(text: str) -> str | None:
    """The language by its ISO 639-1 code, always the same for the same text; None where it cannot be told."""
    detect, unknown = _detector()
    try:
        return str(detect(text))
    except unknown:
        return None


@cache
def _detector() -> tuple[Callable[[str], str], type[Exception]]:
    try:
        import langdetect
    except ImportError:
        raise ValueError("IFEval tells languages apart with langdetect: pip install 'truing[benchmarks]'") from None
    langdetect.DetectorFactory.seed = 0  # its own guesses are random otherwise
    return langdetect.detect, langdetect.LangDetectException


def compare(count: int, relation: object, threshold: object) -> bool:
    """`less than` or `at least`."""
    assert isinstance(threshold, int), "checked when the data are read"
    return count < threshold if relation == "less than" else count >= threshold


def _found(pattern: str, text: str) -> list[str]:
    try:
        return re.findall(pattern, text, flags=re.IGNORECASE)
    except re.error:
        return re.findall(re.escape(pattern), text, flags=re.IGNORECASE)


def _highlights(text: str, given: Arguments) -> bool:
    single = [part for part in re.findall(r"\*[^\n\*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n\*]*\*\*", text) if part.removeprefix("**").removesuffix("**").strip()]
    return len(single) + len(double) >= given["num_highlights"]


def _parts(text: str, divider: str) -> list[str] | None:
    """What stands between dividers; None where something between two of them is empty."""
    parts = re.split(divider, text)
    inner = [i for i, part in enumerate(parts) if not part.strip() and 0 < i < len(parts) - 1]
    return None if inner else [part for part in parts if part.strip()]


def _paragraphs(text: str, given: Arguments) -> bool:
    parts = _parts(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == given["num_paragraphs"]


def _two_responses(text: str, given: Arguments) -> bool:
    parts = _parts(text, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _first_word(text: str, given: Arguments) -> bool:
    paragraphs = text.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    nth = given["nth_paragraph"]
    if nth > count or not paragraphs[nth - 1].strip():
        return False
    word = paragraphs[nth - 1].split()[0].lstrip("'").lstrip('"')
    return count == given["num_paragraphs"] and re.split(r"[.,?!'\"]", word)[0].lower() == given["first_word"].lower()


def _postscript(text: str, given: Arguments) -> bool:
    marker = given["postscript_marker"].strip()
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = patterns.get(marker, r"\s*" + marker.lower() + r".*$")
    return bool(re.findall(pattern, text.lower(), flags=re.MULTILINE))


def _bullets(text: str, given: Arguments) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, flags=re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, flags=re.MULTILINE)
    return len(stars) + len(dashes) == given["num_bullets"]


def _sections(text: str, given: Arguments) -> bool:
    return len(re.split(r"\s?" + given["section_spliter"].strip() + r"\s?\d+\s?", text)) - 1 >= given["num_sections"]


def _json(text: str, given: Arguments) -> bool:
    plain = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        plain = plain.removeprefix(fence)
    try:
        json.loads(plain.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _cased(text: str, cased: bool) -> bool:
    return cased and language(text) in ("en", None)


def _end(text: str, given: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _quoted(text: str, given: Arguments) -> bool:
    plain = text.strip()
    return len(plain) > 1 and plain[0] == plain[-1] == '"'


KINDS: Mapping[str, Kind] = {
    "keywords:existence": Kind(
        needs=("keywords",), check=lambda text, given: all(_found(word, text) for word in given["keywords"])
    ),
    "keywords:frequency": Kind(
        needs=("keyword", "frequency", "relation"),
        check=lambda text, given: compare(len(_found(given["keyword"].strip(), text)), given["relation"], given["frequency"]),
    ),
    "keywords:forbidden_words": Kind(
        needs=("forbidden_words",),
        check=lambda text, given: not any(_found(rf"\b{word}\b", text) for word in given["forbidden_words"]),
    ),
    "keywords:letter_frequency": Kind(
        needs=("letter", "let_frequency", "let_relation"),
        check=lambda text, given: compare(
            text.lower().count(given["letter"].lower()), given["let_relation"], given["let_frequency"]
        ),
    ),
    "language:response_language": Kind(needs=("language",), check=lambda text, given: language(text) in (given["language"], None)),
    "length_constraints:number_sentences": Kind(
        needs=("num_sentences", "relation"),
        check=lambda text, given: compare(sentences(text), given["relation"], given["num_sentences"]),
    ),
    "length_constraints:number_paragraphs": Kind(needs=("num_paragraphs",), check=_paragraphs),
    "length_constraints:number_words": Kind(
        needs=("num_words", "relation"),
        check=lambda text, given: compare(len(re.findall(r"\w+", text)), given["relation"], given["num_words"]),
    ),
    "length_constraints:nth_paragraph_first_word": Kind(needs=("num_paragraphs", "nth_paragraph", "first_word"), check=_first_word),
    "detectable_content:number_placeholders": Kind(
        needs=("num_placeholders",), check=lambda text, given: len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"]
    ),
    "detectable_content:postscript": Kind(needs=("postscript_marker",), check=_postscript),
    "detectable_format:number_bullet_lists": Kind(needs=("num_bullets",), check=_bullets),
    "detectable_format:constrained_response": Kind(check=lambda text, given: any(option in text for option in OPTIONS)),
    "detectable_format:number_highlighted_sections": Kind(needs=("num_highlights",), check=_highlights),
    "detectable_format:multiple_sections": Kind(needs=("section_spliter", "num_sections"), check=_sections),
    "detectable_format:json_format": Kind(check=_json),
    "detectable_format:title": Kind(
        check=lambda text, given: any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))
    ),
    "combination:two_responses": Kind(check=_two_responses),
    "combination:repeat_prompt": Kind(
        needs=("prompt_to_repeat",),
        check=lambda text, given: text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower()),
    ),
    "startend:end_checker": Kind(needs=("end_phrase",), check=_end),
    "startend:quotation": Kind(check=_quoted),
    "change_case:capital_word_frequency": Kind(
        needs=("capital_frequency", "capital_relation"),
        check=lambda text, given: compare(
            sum(word.isupper() for word in words(text)), given["capital_relation"], given["capital_frequency"]
        ),
    ),
    "change_case:english_capital": Kind(check=lambda text, given: _cased(text, text.isupper())),
    "change_case:english_lowercase": Kind(check=lambda text, given: _cased(text, text.islower())),
    "punctuation:no_comma": Kind(check=lambda text, given: "," not in text),
}
"""Name in the data -> kind."""
