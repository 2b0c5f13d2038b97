"""Before and after: the paired difference of two results of a task, item by item; on capability a loss is the alignment tax.

(Ouyang et al. 2022, arXiv 2203.02155, section 4.2, call what alignment costs on public benchmarks the alignment tax.)
"""

from truing.evals.result import Evaluation, same_items
from truing.statistics import Estimate, paired_difference

CAPABILITY = ("mmlu", "gsm8k", "humaneval", "ifeval")
"""The tasks on which a loss is called the alignment tax."""


def difference(before: Evaluation, after: Evaluation, *, seed: int = 0) -> Estimate:
    """Mean of score after - score before over the same items, with the paired bootstrap interval.

    Raises ValueError naming what differs when the two are not of the same task, options, data and items.
    """
    for what in ("task", "options", "data_sha256", "decoding"):
        first, second = getattr(before.setting, what), getattr(after.setting, what)
        if first != second:
            raise ValueError(f"{before.setting.task}: {what} differs between the two ({first} and {second}); evaluate both alike")
    keys = same_items({before.setting.model: before, f"{after.setting.model} (after)": after})
    of_before, of_after = before.by_key(), after.by_key()
    scored = [key for key in keys if of_before[key]["score"] is not None]
    return paired_difference([of_after[key]["score"] for key in scored], [of_before[key]["score"] for key in scored], seed=seed)


def in_words(task: str, gain: Estimate) -> str:
    """One sentence. Example: `mmlu: alignment tax of 1.2 points [0.3, 2.1], n = 570`."""
    low, high = 100 * gain.low, 100 * gain.high
    interval = f"{100 * gain.value:+.1f} points [{low:+.1f}, {high:+.1f}], n = {gain.n}"
    if low > 0:
        return f"{task}: better by {interval}"
    if high < 0:
        tax = f"alignment tax of {-100 * gain.value:.1f} points [{-high:.1f}, {-low:.1f}], n = {gain.n}"
        return f"{task}: {tax}" if task in CAPABILITY else f"{task}: worse by {interval}"
    return f"{task}: no difference can be told, {interval}"
