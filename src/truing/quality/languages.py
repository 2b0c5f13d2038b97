"""Texts that cannot be read, and answers in another script or language than their prompt.

By scripts of letters, and for Latin letters by the commonest small words of nine languages: coarse, quick, without a model. A text
of too few words says nothing. Translations and lessons answer in another language on purpose: look at the examples.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

from truing.quality.finding import Finding, Flagged, rate_finding
from truing.quality.sample import Sample

LOOKED_AT = 400
FEWEST_LETTERS, FEWEST_WORDS = 20, 8
SMALL_WORDS = {
    "English": "the of and to in is that it you for with are was this be have not on as at by or if can do what how would could"
    " they we he she his her your my i me no an from all will there their which who when about so but a",
    "German": "der und das ist nicht ein eine ich sie es den mit zu auf für von sich auch werden",
    "French": "le les des est et une un que pour dans vous pas sur qui je il avec ce sont",
    "Spanish": "el los las que es un una por para se como más su lo pero está y",
    "Italian": "il che di è un una non sono del le si come più della gli questo anche",
    "Portuguese": "os que é um uma para com não se da em por mais dos você são isso muito",
    "Dutch": "de het een en van dat niet op te zijn voor met je er maar ook",
    "Polish": "nie się na jest że jak co ale przez tak od po czy oraz",
    "Turkish": "bir ve bu için da çok ne ile olarak daha gibi var",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in SMALL_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_language)
ASKS_FOR_ANOTHER = re.compile(
    r"translat|language|english|german|french|spanish|italian|portuguese|dutch|polish|turkish|chinese|japanese|korean|russian|arabic"
    r"|hindi|latin|翻译|英文|英语|中文|übersetz|tradu",
    re.I,
)
CODE = re.compile(r"```.*?(?:```|\Z)", re.S)
DAMAGED = re.compile("\ufffd|Ã[\u0080-\u00bf]|â\u0080[\u0090-\u00bf]|â€[œ™\u009d˜¦“”]|Â[\u00a0-\u00bf]")


class Languages:
    """Flags answers in another language than their prompt, texts of no known language, and texts with damaged encoding."""

    def __init__(self) -> None:
        self.rows = 0
        self.other, self.unknown, self.damaged = Flagged(), Flagged(), Flagged()
        self.seen: Counter[str] = Counter()

    def see(self, sample: Sample) -> None:
        """Looks at the beginning of each text."""
        self.rows += 1
        asked = language(sample.prompt)
        self.seen[asked] += 1
        known = asked not in ("", "unknown")
        for side, answer in zip(sample.sides, sample.answers, strict=True):
            answered = language(answer)
            if answered == "unknown":
                self.unknown.add(sample.origin, f"{side}: {answer}")
            elif asked != answered and known and answered and not ASKS_FOR_ANOTHER.search(sample.prompt):
                self.other.add(sample.origin, f"asked in {asked}, {side} answered in {answered}: {answer}")
        if not all(text.isascii() for text in (sample.prompt, *sample.answers)):
            found = next((hit for text in (sample.prompt, *sample.answers) if (hit := DAMAGED.search(text))), None)
            if found:
                self.damaged.add(sample.origin, found.string[max(0, found.start() - 60) : found.end() + 60])

    def findings(self) -> list[Finding]:
        """Three findings; the first lists the languages of prompts."""
        common = ", ".join(f"{name or 'too short to say'} {count}" for name, count in self.seen.most_common(8))
        return [
            rate_finding(
                "other_language",
                self.other,
                self.rows,
                said="rows with an answer in another language than its prompt, where none was asked for",
                why="the preference may be about the language; the model learns to switch",
                mend="truing data filter FILE to=OUT drop=[other_language]",
                watch=0.002,
                act=0.02,
                details=(f"prompts by language: {common}",),
            ),
            rate_finding(
                "unreadable_text",
                self.unknown,
                self.rows,
                said="rows with an answer in no language that is known here",
                why="noise is cheap to tell from text, and that is all that is learnt from it",
                mend="truing data filter FILE to=OUT drop=[unreadable_text]",
                watch=0.002,
                act=0.02,
            ),
            rate_finding(
                "damaged_encoding",
                self.damaged,
                self.rows,
                said="rows with text that was decoded wrongly (Ã©, â€™, \ufffd)",
                why="the model learns to write the damage",
                mend="make the file again from its source as UTF-8, or truing data filter FILE to=OUT drop=[damaged_encoding]",
                watch=0.002,
            ),
        ]


def language(text: str) -> str:
    """A script, or for Latin letters a language; `unknown` for text of neither, and empty where there is too little to say."""
    head = CODE.sub(" ", text[: 4 * LOOKED_AT])[:LOOKED_AT] if "```" in text else text[:LOOKED_AT]
    if not head.isascii():
        scripts = Counter(script(sign) for sign in head if sign.isalpha())
        letters = sum(scripts.values())
        if letters < FEWEST_LETTERS // 2:
            return ""
        name, count = max(scripts.items(), key=lambda item: item[1])
        if name != "Latin":
            return name if count > 0.5 * letters else ""
        if count < 0.9 * letters:
            return ""
    words = re.findall(r"[^\W\d_]+", head.lower())
    if len(words) < FEWEST_WORDS:
        return _noise(head)
    votes: Counter[str] = Counter()
    for word in set(words):
        for candidate in _LANGUAGES_OF.get(word, ()):
            votes[candidate] += 1
    if not votes:
        return "unknown" if len(words) >= 3 * FEWEST_WORDS and not _is_list_or_code(head) else ""
    ordered = votes.most_common(2)
    if ordered[0][1] < 3 or (len(ordered) > 1 and ordered[0][1] < 1.5 * ordered[1][1]):
        return ""
    return ordered[0][0]


def _noise(head: str) -> str:
    """Long text of hardly any words: one long run of signs, or mostly punctuation."""
    if len(head) < 60:
        return ""
    return "unknown" if max(map(len, head.split()), default=0) > 60 and "http" not in head and "/" not in head else ""


def _is_list_or_code(head: str) -> bool:
    """Whether small words are not to be expected: names in a row, code, tables."""
    return sum(sign in "{}();=<>|#*-,\n:/\\_[]\"'.0123456789" for sign in head) > 0.06 * len(head)


@lru_cache(maxsize=4096)
def script(sign: str) -> str:
    """The script of a letter, by the first word of its Unicode name; scripts that one language mixes go by one name."""
    name = unicodedata.name(sign, "UNKNOWN").split()[0]
    known = {"LATIN": "Latin", "CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
    return known.get(name, name.title())
