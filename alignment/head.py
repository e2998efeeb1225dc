"""Log-probs of tokens from the hidden states that predict them: logits of the head, few at a time.

Shape letters: ``N`` tokens, ``V`` vocabulary, ``H`` width of the model.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from alignment.sharding import is_divided

# Logits that are held at a time, 128 MB in float32: 1,048 positions of 32,000 tokens. Each chunk more adds once to the
# gradient of the head's weights, and has its logits computed again in the backward pass.
MAX_LOGITS = 2**25


def settings_of(causal: PreTrainedModel) -> Mapping[str, Any]:
    """What its configuration says; families differ in what that is."""
    return vars(causal.config.get_text_config())


def logps_in_chunks(
    causal: PreTrainedModel,
    logits_of: Callable[[Tensor], Tensor],
    hidden_NH: Tensor,
    ids_N: Tensor,
    *,
    confidence: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [N] of tokens, and where asked for their excess over the model's own confidence.

    Args:
        causal: whose head it is, for what it does to its logits.
        logits_of: the head.
        hidden_NH: that predict the tokens.
        ids_N: the tokens.
        confidence: also give ``log pi(y_t) - log sum_v pi(v)^2``, without gradient.
    """
    settings = settings_of(causal)
    # Cohere multiplies, Granite divides, Gemma-2 bounds.
    scale = float(settings.get("logit_scale") or 1.0) / float(settings.get("logits_scaling") or 1.0)
    cap = settings.get("final_logit_softcapping")

    def logps(hidden_NH: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_NV = logits_of(hidden_NH)
        if scale != 1.0:
            logits_NV = logits_NV * scale
        if cap is not None:
            logits_NV = cap * torch.tanh(logits_NV / cap)
        return logps_of_logits(logits_NV, ids_N, confidence=confidence)

    count = _num_chunks(causal, len(ids_N) * int(causal.config.get_text_config().vocab_size))
    if count == 1:
        return logps(hidden_NH, ids_N)
    parts = [
        checkpoint(logps, *chunk, use_reentrant=False)
        for chunk in zip(hidden_NH.tensor_split(count), ids_N.tensor_split(count), strict=True)
    ]
    return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts]) if confidence else None


def may_add_rows(causal: PreTrainedModel) -> bool:
    """Whether the gradient of a weight that is embedding and head may be had from :class:`TiedWeight`.

    On a CPU, where the passes over a whole vocabulary that it spares are slow.
    """
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    return (
        torch.is_grad_enabled()
        and type(embedding) is nn.Embedding
        and type(head) is nn.Linear
        and embedding.weight is head.weight
        and head.bias is None
        and head.weight.requires_grad
        and head.weight.device.type == "cpu"
        and not is_divided(causal)
    )


class TiedWeight(torch.autograd.Function):
    """A weight -> as that of the head, and as that of the embedding, whose gradient may come in rows.

    Each row is added where the head's gradient is. Autograd would make a second gradient of the whole vocabulary for a
    few rows, and a third for the sum.
    """

    @staticmethod
    def forward(ctx: Any, weight_VH: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight_VH.view_as(weight_VH), weight_VH.view_as(weight_VH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_head_VH: Tensor | None, of_rows_VH: Tensor | None) -> Tensor | None:
        if of_head_VH is None or of_rows_VH is None:
            return of_head_VH if of_rows_VH is None else of_rows_VH.to_dense()
        of_rows_VH = of_rows_VH.coalesce()
        # A product that was made for this, so that nobody else reads it.
        return of_head_VH.index_add_(0, of_rows_VH.indices()[0], of_rows_VH.values())


def _num_chunks(causal: PreTrainedModel, num_logits: int) -> int:
    count = max(1, math.ceil(num_logits / MAX_LOGITS))
    if is_divided(causal):
        # Processes gather the weights of the head for each chunk, together.
        counts = torch.tensor(count, device=causal.device)
        torch.distributed.all_reduce(counts, op=torch.distributed.ReduceOp.MAX)
        count = int(counts)
    return count


def logps_of_logits(logits_NV: Tensor, ids_N: Tensor, *, confidence: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probs of tokens under logits with any leading dimensions, which are overwritten."""
    logits_NV = logits_NV.float()
    logps_N: Tensor = _TokenLogps.apply(logits_NV, ids_N)
    if not confidence:
        return logps_N, None
    with torch.no_grad():
        # By now.
        exps_NV = logits_NV
        return logps_N, logps_N - 2.0 * (torch.linalg.vector_norm(exps_NV, dim=-1) / exps_NV.sum(-1)).log()


class _TokenLogps(torch.autograd.Function):
    """``logits[id] - log sum exp(logits)``. Leaves exponentials in the place of the logits, and keeps nothing else.

    A pass over a whole vocabulary costs what memory costs: there are two tensors of that size, logits and gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        ids_N1 = ids_N[..., None]
        largest_N1 = logits_NV.amax(-1, keepdim=True)
        chosen_N1 = logits_NV.gather(-1, ids_N1) - largest_N1
        sum_N1 = logits_NV.sub_(largest_N1).exp_().sum(-1, keepdim=True)
        ctx.save_for_backward(logits_NV, ids_N1, sum_N1)
        return (chosen_N1 - sum_N1.log()).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        exps_NV, ids_N1, sum_N1 = ctx.saved_tensors
        grad_N1 = grad_N[..., None]
        return (exps_NV * (-grad_N1 / sum_N1)).scatter_add_(-1, ids_N1, grad_N1), None
