"""A causal language model seen as a policy: log pi(y|x) of the responses of a TreeBatch, and nothing that trains it.

Two layouts give the same numbers. `tree`: one packed row, the prompt computed once for its k responses. `plain`: each response with
its own prompt in a padded row, for models whose layers cannot be told who sees whom. `probe` finds out by numbers, not by names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from truing.data.tree import Branch, Tree, TreeBatch
from truing.functional import segment_sum, token_distributions, token_entropies, token_log_collision, token_log_probs
from truing.memory import large_blocks_apart
from truing.models import attention
from truing.models.few_rows import weights_first
from truing.models.fused import fuse
from truing.models.lora import AdaptersAsNow, has_lora
from truing.models.lower_layers import LowerLayers
from truing.models.rope import reach_of, refuse_beyond

LayoutName = Literal["tree", "plain"]
PROBE_TOLERANCE = 5e-4
"""Largest difference of log-probabilities that the probe takes for rounding in fp32."""
COARSE_TOLERANCE = 0.2
"""Mean difference that it takes for rounding in bf16, where eager and fused attention differ by 0.08 on a 135M model."""
PROBE_BLOCK = 16
NOT_TAKEN = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, NotImplementedError)
"""What a model may raise that is asked for something its layers cannot do."""


class _Head(NamedTuple):
    """What turns a hidden state into logits."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None
    softcap: float | None


class Policy(nn.Module):
    """A language model and the layout it runs in. Example: `Policy.of(load_causal(name, dtype=torch.float32)).log_probs(batch)`."""

    def __init__(
        self, model: PreTrainedModel, *, layout: LayoutName, chunked_head: bool = True, block: int = attention.BLOCK
    ) -> None:
        super().__init__()
        self.model = model
        self.layout: LayoutName = layout
        self.chunked_head = chunked_head
        self.block = block
        self.reach = reach_of(model.config)
        """Tokens of prompt and response that the model is used up to (`truing.models.rope`); None where nothing ends there."""
        self.recompute_above: int | None = None
        """Batches of more tokens keep only each layer's input and compute the rest again going backward; None never does."""
        self.lower: LowerLayers | None = None
        """The layers beneath every adapter, where what they say is kept for a round (`share_lower_layers`)."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Policy":
        """The model in the fastest layout in which its own numbers come out; `reason_for_plain` says why it is not trees."""
        return probe(model).policy

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.head_weight.dtype

    @property
    def head_weight(self) -> Tensor:
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def vocabulary(self) -> int:
        """Tokens that have a logit."""
        return int(self.head_weight.shape[0])

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.head_weight.shape[1])

    def hidden(self, batch: TreeBatch, at: Int[Tensor, " place"], response: Int[Tensor, " place"]) -> Float[Tensor, "place width"]:
        """Final hidden states of tokens `at` (indices into `batch.tokens`), each as seen along the given response.

        Raises ValueError for a response beyond the model's reach.
        """
        self._within_reach(batch)
        body = decoder(self.model)
        if self.layout == "tree":
            with self._recomputing(len(batch.tokens)), self.lower.once(batch) if self.lower else nullcontext():
                output = body(
                    input_ids=batch.tokens[None],
                    position_ids=batch.positions[None],
                    use_cache=False,
                    tree_layout=attention.layout_of(batch, self.model.dtype, self.block),
                )
            states: Tensor = output.last_hidden_state[0]
            return states.index_select(0, at)
        rows, mask = _padded(batch)
        with self._recomputing(rows.numel()):
            output = body(input_ids=rows, attention_mask=mask, use_cache=False)
        states = output.last_hidden_state
        return states[response, batch.positions[at]]

    @contextmanager
    def _recomputing(self, tokens: int) -> Iterator[None]:
        """Activation checkpointing layer by layer (Chen et al. 2016, arXiv 1604.06174) where a batch is large enough for it."""
        layers: list[Any] = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        large = self.recompute_above is not None and tokens > self.recompute_above
        if large:
            large_blocks_apart()
        if not layers or not large or not torch.is_grad_enabled():
            yield
            return
        for layer in layers:
            again: dict[str, Any] = {"context_fn": partial(_as_now, layer)} if has_lora(layer) else {}
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, **again)
            layer.gradient_checkpointing = layer.training = True  # its own flags alone: nothing inside is to think that it trains
        try:
            yield
        finally:
            for layer in layers:
                layer.gradient_checkpointing = layer.training = False

    def log_probs(self, batch: TreeBatch, *, temperature: float = 1.0) -> Float[Tensor, " scored"]:
        """log pi of each scored token, logits divided by the temperature, in fp32."""
        if not self.chunked_head:
            self._within_reach(batch)
            rows, mask = _padded(batch)
            logits = self.model(input_ids=rows, attention_mask=mask, use_cache=False).logits
            chosen = logits[batch.response, batch.positions[batch.source]].float() / temperature
            return chosen.log_softmax(-1).gather(1, batch.target[:, None]).squeeze(1)
        hidden = self.hidden(batch, batch.source, batch.response)
        head = self._head()
        return token_log_probs(hidden, head.weight, batch.target, bias=head.bias, scale=1.0 / temperature, softcap=head.softcap)

    def log_probs_and_collision(self, batch: TreeBatch) -> tuple[Float[Tensor, " scored"], Float[Tensor, " scored"]]:
        """log pi of each scored token, and log sum_v pi(v)^2 of its distribution, without gradient.

        The hidden states are computed once, the logits twice. Raises ValueError as `entropies` does.
        """
        self._apart("the distribution's collision probability (wpo)")
        hidden = self.hidden(batch, batch.source, batch.response)
        head = self._head()
        log_probs = token_log_probs(hidden, head.weight, batch.target, bias=head.bias, softcap=head.softcap)
        return log_probs, token_log_collision(hidden, head.weight, bias=head.bias, softcap=head.softcap)

    def entropies(self, batch: TreeBatch, *, temperature: float = 1.0) -> Float[Tensor, " scored"]:
        """Entropy in nats of the distribution that each scored token is of, at the temperature, in fp32.

        Raises ValueError where the model's head cannot be applied to single hidden states.
        """
        self._apart("the entropy bonus")
        hidden = self.hidden(batch, batch.source, batch.response)
        head = self._head()
        return token_entropies(hidden, head.weight, bias=head.bias, scale=1.0 / temperature, softcap=head.softcap)

    def distributions(self, batch: TreeBatch, *, temperature: float = 1.0) -> Callable[[slice], Float[Tensor, "scored vocabulary"]]:
        """The whole distribution that each scored token is of: asked for a slice of scored tokens, log pi of every token, in fp32.

        Hidden states are computed here, logits when they are asked for.
        """
        if not self.chunked_head:
            self._within_reach(batch)
            rows, mask = _padded(batch)
            logits = self.model(input_ids=rows, attention_mask=mask, use_cache=False).logits
            kept = logits[batch.response, batch.positions[batch.source]]
            return lambda places: (kept[places].float() / temperature).log_softmax(-1)
        hidden, head = self.hidden(batch, batch.source, batch.response), self._head()
        return lambda places: token_distributions(
            hidden[places], head.weight, bias=head.bias, scale=1.0 / temperature, softcap=head.softcap
        )

    def _within_reach(self, batch: TreeBatch) -> None:
        if self.reach is not None:
            longest = int(batch.positions.max()) + 1
            refuse_beyond(self.reach, longest, f"leave out longer ones, as data.max_tokens={self.reach} does")

    def _head(self) -> _Head:
        head = self.model.get_output_embeddings()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return _Head(head.weight, getattr(head, "bias", None), softcap)

    def _apart(self, what: str) -> None:
        if not self.chunked_head:
            raise ValueError(
                f"{what}: this model's head cannot be applied to single hidden states; take another loss or another model"
            )

    def response_log_probs(self, batch: TreeBatch) -> Float[Tensor, " response"]:
        """log pi(y|x) of each response: its scored tokens, summed."""
        return segment_sum(self.log_probs(batch), batch.response, batch.responses)

    def final_hidden(self, batch: TreeBatch) -> Float[Tensor, "response width"]:
        """Hidden state of each response's last token: what a reward is read from."""
        return self.hidden(batch, batch.last, torch.arange(batch.responses, device=batch.last.device))


@torch.no_grad()
def share_lower_layers(policy: Policy) -> None:
    """Lets the roles on one base compute the layers beneath all adapters once a round, where the same numbers come out of it.

    After the adapters have been added. What a model makes of its layers beside running them one by one shows in small trees.
    """
    lower = LowerLayers.of(policy.model) if policy.layout == "tree" else None
    if lower is None:
        return
    batch = TreeBatch.of(_probe_trees(policy.vocabulary), policy.device)
    alone = policy.log_probs(batch)
    policy.lower = lower
    lower.begin()
    try:
        said = [policy.log_probs(batch) for _ in range(2)]
        agrees = bool(lower.kept) and all(torch.equal(alone, one) for one in said)
    except NOT_TAKEN:  # an upper layer reads what a lower one would have left for it
        agrees = False
    lower.end()
    if not agrees:
        policy.lower = None


def _as_now(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """In what a layer is computed, and in what again: under the adapter of the first time, since the other roles have theirs."""
    return nullcontext(), AdaptersAsNow(layer)


def decoder(model: PreTrainedModel) -> nn.Module:
    """The model without its head, with any adapter inside."""
    body: nn.Module = model.base_model
    return body


def _padded(batch: TreeBatch) -> tuple[Int[Tensor, "response time"], Int[Tensor, "response time"]]:
    """Each response after its own prompt, padded on the right; the mask comes from lengths, never from a pad id."""
    runs = [(*tree.trunk, *branch.tokens) for tree in batch.trees for branch in tree.branches]
    longest = max(map(len, runs))
    rows = torch.zeros(len(runs), longest, dtype=torch.long)
    mask = torch.zeros_like(rows)
    for number, run in enumerate(runs):
        rows[number, : len(run)] = torch.tensor(run)
        mask[number, : len(run)] = 1
    return rows.to(batch.tokens.device), mask.to(batch.tokens.device)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What the probe found."""

    policy: Policy
    reason_for_plain: str | None
    """Why the model does not run as trees; None when it does."""


@torch.no_grad()
def probe(model: PreTrainedModel) -> Probed:
    """Compare tree and chunked-head log-probabilities with the model's own logits on small trees; keep what agrees.

    The model's own padded forward pass is the truth. The trees are longer than one (small) attention block and have branches of
    unequal length. Rewriting one branch must leave every other response untouched, to the last bit: this finds leaks that rounding
    would hide.
    """
    attention.register()
    before = model.config._attn_implementation
    vocabulary, device = model.config.get_text_config().vocab_size, next(model.parameters()).device
    batch = TreeBatch.of(_probe_trees(vocabulary), device)
    own = Policy(model, layout="plain", chunked_head=False).log_probs(batch)
    fuse(model)
    weights_first(model)
    reason = _unsupported(model)
    if reason is None:
        try:
            model.set_attn_implementation(attention.NAME)
            reason = _disagreement(Policy(model, layout="tree", block=PROBE_BLOCK), batch, own, vocabulary)
        except NOT_TAKEN as error:
            reason = f"its layers do not take the tree layout ({type(error).__name__}: {str(error).splitlines()[0][:160]})"
        if reason is None:
            return Probed(policy=Policy(model, layout="tree"), reason_for_plain=None)
        model.set_attn_implementation(before)
    try:
        agrees = _close(Policy(model, layout="plain").log_probs(batch), own, model.dtype)
    except (TypeError, AttributeError, RuntimeError):
        agrees = False
    return Probed(policy=Policy(model, layout="plain", chunked_head=agrees), reason_for_plain=reason)


def _close(found: Tensor, own: Tensor, dtype: torch.dtype) -> bool:
    gap = (found - own).abs()
    return bool(gap.max() <= PROBE_TOLERANCE if dtype == torch.float32 else gap.mean() <= COARSE_TOLERANCE)


def _disagreement(trees: Policy, batch: TreeBatch, own: Tensor, vocabulary: int) -> str | None:
    found = trees.log_probs(batch)
    if not _close(found, own, trees.model.dtype):
        return f"its log-probabilities as trees differ from its own by up to {(found - own).abs().max().item():.2g}"
    for rewritten in range(batch.responses):
        changed = trees.log_probs(TreeBatch.of(_probe_trees(vocabulary, rewritten), found.device))
        others = batch.response != rewritten
        if not torch.equal(changed[others], found[others]):
            return "its responses see one another in the tree layout"
    return None


def _unsupported(model: PreTrainedModel) -> str | None:
    """Features that short probes cannot see."""
    config = model.config.get_text_config()
    for key in ("attention_chunk_size",):
        if getattr(config, key, None):
            return f"its configuration sets {key}"
    return None


def _probe_trees(vocabulary: int, rewritten: int | None = None) -> Sequence[Tree]:
    def run(start: int, count: int) -> tuple[int, ...]:
        return tuple((start * 7919 + i * 104729) % vocabulary for i in range(count))

    root = run(50, 4)

    def branch(number: int, count: int) -> Branch:
        return Branch(tokens=run(number + (100 if number == rewritten else 10), count), scored=(True,) * count)

    return (
        Tree(trunk=root + run(1, 3), branches=(branch(0, 4), branch(1, 3), branch(2, 1))),
        Tree(trunk=root + run(2, 2), branches=(branch(3, 3),)),
        Tree(trunk=root + run(4, 3), branches=(branch(4, 4), branch(5, 3))),  # so like the first that both are handled together
        Tree(trunk=root + run(3, PROBE_BLOCK + 3), branches=(branch(6, 9), branch(7, PROBE_BLOCK + 2))),
    )
