"""log sum_v pi(v)^2 of each scored token beside its log-probability, out of one pass through the model."""

from jaxtyping import Float
from torch import Tensor

from truing.data.tree import TreeBatch
from truing.functional import token_log_collision, token_log_probs
from truing.models.policy import Policy


def with_collision(policy: Policy, batch: TreeBatch) -> tuple[Float[Tensor, " scored"], Float[Tensor, " scored"]]:
    """log pi of each scored token as `Policy.log_probs` gives it, and log sum_v pi(v)^2 of its distribution, without gradient.

    The hidden states are computed once; the logits twice. Raises ValueError where the model's head cannot be applied on its own.
    """
    if not policy.chunked_head:
        raise ValueError("wpo: this model's head cannot be applied to single hidden states; take another loss or another model")
    head = policy.model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    softcap = getattr(policy.model.config.get_text_config(), "final_logit_softcapping", None)
    hidden = policy.hidden(batch, batch.source, batch.response)
    log_probs = token_log_probs(hidden, head.weight, batch.target, bias=bias, softcap=softcap)
    return log_probs, token_log_collision(hidden, head.weight, bias=bias, softcap=softcap)
