"""Log-likelihoods of answers: one question with its answers is a tree, so the question is computed once.

Plain text becomes tokens as lm-eval 0.4.13 does it: context and answer are encoded together, and the answer is what lies behind
the tokens of the context alone. What neighbours begin with, such as five worked examples, is computed once a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from truing.data.chat import ChatTokenizer
from truing.data.problems import DataError
from truing.data.tree import Branch, Tree, common_beginning
from truing.evals.measures import per_tree
from truing.evals.tasks.task import Choices, Style
from truing.models.policy import Policy
from truing.records import Message
from truing.runs.sinks import Tick

Ids = tuple[int, ...]


def log_likelihoods(
    policy: Policy, chat: ChatTokenizer, questions: Sequence[Choices], *, style: Style, budget: int, progress: Tick | None = None
) -> list[list[float]]:
    """log P(answer | question) in nats, summed over the answer's tokens: one list a question, one number an answer.

    `budget` is how many tokens are computed at once; it changes memory and speed, and the numbers by rounding alone.
    """
    longest = int(policy.model.config.get_text_config().max_position_embeddings)
    found: list[list[float]] = []
    for _, group in groupby(questions, key=lambda question: question.shots):
        together = list(group)
        trees, owners = _grow(together, chat, style, longest)
        shared = common_beginning([tree.trunk for tree in trees])
        done = len(found)

        def tick(so_far: int, of: int, done: int = done, here: int = len(together)) -> None:
            if progress:
                progress(done + so_far * here // of, len(questions))

        values = per_tree(
            trees, policy.response_log_probs, budget=budget + shared, device=policy.device, progress=tick, shared=shared
        )
        of_question: list[list[float]] = [[] for _ in together]
        for owner, value in zip(owners, values, strict=True):
            of_question[owner] += value
        found += of_question
    return found


def _grow(questions: Sequence[Choices], chat: ChatTokenizer, style: Style, longest: int) -> tuple[list[Tree], list[int]]:
    """The trees, and the question each belongs to: one a question, or one an answer where the context must be cut for it."""
    trees: list[Tree] = []
    owners: list[int] = []
    encoded = _plain(questions, chat) if style == "plain" else _chatted(questions, chat)
    for number, (trunk, answers) in enumerate(encoded):
        for answer, ids in zip(questions[number].answers, answers, strict=True):
            if not ids or len(ids) > longest:
                raise DataError(
                    f"{questions[number].key}: the answer {answer!r} is {len(ids)} tokens long; 1 to {longest} can be scored"
                )
        # The last token of an answer is never an input, so one more than the window fits; a longer context loses its beginning.
        room = longest + 1
        branches = [Branch(tokens=ids, scored=(True,) * len(ids)) for ids in answers]
        if len(trunk) + max(map(len, answers)) <= room:
            trees.append(Tree(trunk=trunk, branches=tuple(branches)))
            owners.append(number)
            continue
        trees += [Tree(trunk=trunk[-(room - len(branch.tokens)) :], branches=(branch,)) for branch in branches]
        owners += [number] * len(branches)
    return trees, owners


def _plain(questions: Sequence[Choices], chat: ChatTokenizer) -> Iterator[tuple[Ids, list[Ids]]]:
    """As lm-eval encodes a pair: spaces at the end of the context go over to the answer, BOS stands where the tokenizer puts it."""
    for question in questions:
        whole = question.shots + question.text
        context = whole.rstrip()
        moved = whole[len(context) :]
        texts = [context, *(context + moved + answer for answer in question.answers)]
        trunk, *rest = encode(chat, texts)
        if not trunk:
            raise DataError(f"{question.key}: the question is empty")
        yield trunk, [ids[len(trunk) :] for ids in rest]


def encode(chat: ChatTokenizer, texts: Sequence[str]) -> list[Ids]:
    """Token ids as the tokenizer makes them of plain text; BOS is not put before a text that begins with it."""
    bos = chat.tokenizer.bos_token
    written = bool(bos) and texts[0].startswith(str(bos))
    options: Mapping[str, bool] = {"add_special_tokens": False} if written else {}
    return [tuple(ids) for ids in chat.tokenizer(list(texts), **options)["input_ids"]]


def _chatted(questions: Sequence[Choices], chat: ChatTokenizer) -> Iterator[tuple[Ids, list[Ids]]]:
    """The question as a user's message, each answer as the beginning of the assistant's."""
    for question in questions:
        prompt = (Message(role="user", content=question.shots + question.text),)
        answers = [answer.strip() for answer in question.answers]
        tree = chat.tree_of_responses(prompt, answers, max_tokens=1 << 30, finished=False, sampled=True).tree
        assert tree is not None, "a message and answers that are not empty make a tree"
        yield tree.trunk, [branch.tokens for branch in tree.branches]
