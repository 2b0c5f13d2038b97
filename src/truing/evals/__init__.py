"""What a model does on held-out prompts, in numbers that carry their uncertainty.

`alpaca_eval_2` is the one function from annotation records to the raw and the length-controlled win rate of AlpacaEval 2:

    from truing.evals import alpaca_eval_2

    found = alpaca_eval_2(annotations, "alpaca_eval_numbers")
    100 * found.raw.value, 100 * found.controlled.value

Each annotation holds `preference` in [1, 2] (2: the model wins), `len_baseline` and `len_model` (or the texts `output_1` and
`output_2`) and `index`, the number of its instruction; the folder holds `instruction_difficulty.csv` and `gamed_lengths.csv`.
"""

from truing.evals.length_controlled import LengthControlled, alpaca_eval_2

__all__ = ["LengthControlled", "alpaca_eval_2"]
