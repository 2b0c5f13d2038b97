"""Conversations that are put together wrongly: turns out of order, and the markers of some template left in the text.

Rows that are no conversation at all are refused by the readers (`truing.quality.unreadable` counts those).
"""

from itertools import pairwise

from truing.quality.finding import Finding, Flagged, rate_finding
from truing.quality.sample import Sample

MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|assistant|>", "<|user|>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>", "<end_of_turn>", "### Response:", "### Instruction:"),
    *("\n\nHuman:", "\n\nAssistant:", "\nUser:", "\nAssistant:", "\nUSER:", "\nASSISTANT:", "</s>"),
)
"""What templates write between turns, and texts should not hold."""


class Turns:
    """Flags rows with turns out of order, and rows with markers in their text."""

    def __init__(self) -> None:
        self.rows = 0
        self.order, self.markers = Flagged(), Flagged()

    def see(self, sample: Sample) -> None:
        """Looks at roles and texts."""
        self.rows += 1
        wrong = order_fault(sample)
        if wrong:
            self.order.add(sample.origin, wrong)
        for text in (sample.prompt, *sample.answers):
            if "<" in text or "[" in text or "\n" in text:
                found = next((marker for marker in MARKERS if marker in text), None)
                if found:
                    place = text.index(found)
                    self.markers.add(sample.origin, f"{found.strip()!r} in: {text[max(0, place - 60) : place + 60]}")

    def findings(self) -> list[Finding]:
        """Two findings."""
        return [
            rate_finding(
                "turn_order",
                self.order,
                self.rows,
                said="rows whose turns do not alternate between user and assistant",
                why="templates refuse such rows or write them in a way that inference never does",
                mend="truing data filter FILE to=OUT drop=[turn_order]",
            ),
            rate_finding(
                "markers",
                self.markers,
                self.rows,
                said="rows with a template's markers in their text",
                why="the model learns to write the other side's turn; one example was split wrongly when it was made",
                mend="truing data filter FILE to=OUT drop=[markers]"
                if 2 * len(self.markers) < self.rows
                else "the texts carry a template already: write them without it, or train with data.template=continue",
            ),
        ]


def order_fault(sample: Sample) -> str:
    """What is wrong with the order of turns; empty when nothing is."""
    roles = [turn.role for turn in sample.messages if turn.role != "system"]
    if roles and roles[0] == "assistant":
        return "the conversation begins with an assistant turn"
    for i, (before, after) in enumerate(pairwise(roles), start=2):
        if before == after and before != "tool":
            return f"turn {i} is a second {after} turn in a row"
    if sample.answers and roles and roles[-1] not in ("user", "tool"):
        return "the answer follows an assistant turn"
    return ""
