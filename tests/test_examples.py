"""Data settings as examples: what a filter cannot judge is refused, never dropped without a word."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from truing.data.chat import ChatTokenizer
from truing.recipes.examples import examples
from truing.recipes.settings import Data
from truing.records import Demonstration, Preference

ROWS = "prompt,good_answer,bad_answer\n" + "Q1?,one two three four five,no\nQ2?,yes,well no\nQ3?,sure,never so\n"


def test_the_length_filter_drops_and_counts_pairs_and_refuses_other_records(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
):
    path = tmp_path / "pairs.csv"
    path.write_text(ROWS)
    chat = ChatTokenizer.of(tiny_tokenizer)
    data = Data(path=str(path), length_factor=2.0, held_out_share=0.0)
    found = examples(data, chat, (Preference,))
    assert (found.reading.too_long_chosen, len(found.train.records)) == (1, 2)
    with pytest.raises(ValueError, match=r"pairs\.csv: data\.length_factor compares .* not Demonstration records"):
        examples(data, chat, (Demonstration,))
