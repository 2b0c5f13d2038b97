"""lm-eval's IFEval checks, run in its own environment: `python -P ifeval_side.py SPEC RESULT`."""

import json
import sys
from pathlib import Path

import langdetect
import nltk

nltk.data.find = lambda *args, **options: True  # lm-eval would download its sentence model when it is imported

from lm_eval.tasks.ifeval import instructions_util, utils  # noqa: E402
from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer  # noqa: E402

SENTENCES, WORDS = PunktSentenceTokenizer(), NLTKWordTokenizer()


def main() -> None:
    langdetect.DetectorFactory.seed = 0
    instructions_util.count_sentences = lambda text: len(SENTENCES.tokenize(text))
    nltk.word_tokenize = lambda text: [word for sentence in SENTENCES.tokenize(text) for word in WORDS.tokenize(sentence)]
    flags = []
    for case in json.loads(Path(sys.argv[1]).read_text())["cases"]:
        kinds, kwargs = zip(*case["instructions"], strict=True)
        asked = utils.InputExample(key=0, instruction_id_list=list(kinds), prompt=case["prompt"], kwargs=list(kwargs))
        both = (utils.test_instruction_following_strict, utils.test_instruction_following_loose)
        flags.append([list(map(bool, check(asked, case["answer"]).follow_instruction_list)) for check in both])
    Path(sys.argv[2]).write_text(json.dumps({"flags": flags}))


main()
