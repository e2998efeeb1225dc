"""Log-probs of completions under a causal language model: which rows it reads, and how few logits are held at a time.

A model is a backbone that gives hidden states and a head that makes logits of them. Only positions that predict a
token of a completion go through the head, a bounded number at a time, and where a prompt has several completions it
is read once (:mod:`alignment.packing`). That a model can be taken apart like this is not assumed: when it is first
scored, a few tokens go through it both ways. A model that answers differently is scored by its own forward, and a
reason says so.

Shape letters: ``B`` prompts, ``G`` completions of a prompt, ``T`` columns, ``V`` vocabulary, ``H`` width of the model;
``R`` rows of width ``W``, ``N`` tokens of completions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import is_compiled_module
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import PreTrainedModel

from alignment.attention import has_kernel
from alignment.errors import UserError
from alignment.head import MAX_LOGITS, TiedWeight, logps_in_chunks, logps_of_logits, may_add_rows, settings_of
from alignment.packing import (
    MASKED_ATTENTIONS,
    Rows,
    dense_cost,
    dense_rows,
    plan_rows,
    scored_mask,
    shared_rows,
)
from alignment.types import Completions

# A layer does 12 H^2 multiplications with a token, and 2 H for each pair of positions.
_PAIRS_PER_TOKEN_AND_WIDTH = 6

# How far the two ways of scoring may lie apart, as a share of the spread of the log-probs, and in nats: in float32, and
# where weights or products are rounded to fewer bits, as they may be on any accelerator.
_TOLERANCE, _ROUNDED_TOLERANCE = (1e-3, 1e-5), (0.1, 0.02)

# Kernels of FlexAttention that torch may compile. Past its own limit of 8 it holds all pairs of positions, and warns.
# With gradient and without, shared rows and others, one row and several, a probe and batches: 13 were met on a CPU.
_MAX_KERNELS = 64

# Kinds of layers whose tokens see one another by the mask alone.
_KINDS = {"full_attention", "sliding_attention"}

# Between the tokens of a probe; a prime, so that they differ under any vocabulary.
_STRIDE = 7919

Layout = Literal["auto", "prefix", "dense"]
Logits = Literal["auto", "chunked", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How log-probs are computed; the same numbers in every case.

    Attributes:
        layout: ``prefix`` reads each prompt once for all of its completions, ``dense`` once for each; ``auto`` takes
            ``prefix`` for a batch where the model allows it and it costs less.
        logits: ``chunked`` holds a bounded number of logits at a time, and none of prompts or padding; ``whole`` is
            the model's own forward; ``auto`` takes ``chunked`` where the model's head is understood.
    """

    layout: Layout = "auto"
    logits: Logits = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Log-probs of completions under one policy, float32, in nats. Here ``T`` counts completion columns only.

    Attributes:
        logps_BG: summed over completion tokens.
        token_logps_BGT: of each token, zero outside the completion.
        token_mask_BGT: true on completion tokens of valid responses.
        token_excess_BGT: ``log pi(y_t) - log sum_v pi(v)^2``, without gradient, where asked for.
    """

    logps_BG: Tensor
    token_logps_BGT: Tensor
    token_mask_BGT: Tensor
    token_excess_BGT: Tensor | None = None


def score(
    model: nn.Module, completions: Completions, *, confidence: bool = False, scoring: Scoring | None = None
) -> Scores:
    """Log-probs of completion tokens.

    Args:
        model: a causal language model of transformers, wrapped or not.
        completions: in the layout [padding | prompt | completion | padding].
        confidence: also return ``token_excess_BGT``.
        scoring: how; ``None`` for what was chosen for the model (:func:`choose_scoring`), or the automatic choice.
    """
    causal = causal_lm(model)
    scoring = scoring_of(causal) if scoring is None else scoring
    # Copies on several devices would each see a part of a batch, and a compiled forward its first one's positions.
    is_whole = scoring.logits == "whole" or isinstance(model, nn.DataParallel) or is_compiled_module(model)
    anatomy = None if is_whole else _allowed_anatomy(causal, scoring)
    if anatomy is None or anatomy.whole_because is not None:
        return _scores(completions, *_by_its_own_forward(model, completions, confidence=confidence))
    rows = _rows(causal, anatomy, completions, scoring)
    return _scores(completions, *_by_head(model, causal, rows, confidence=confidence))


def _scores(completions: Completions, logps_N: Tensor, excess_N: Tensor | None) -> Scores:
    scored_BGT = scored_mask(completions)
    scored_BGT = scored_BGT[..., -_completion_columns(completions.completion_mask_BGT) :]

    def placed(values_N: Tensor) -> Tensor:
        return torch.zeros(scored_BGT.shape, device=values_N.device).masked_scatter(scored_BGT, values_N)

    token_logps_BGT = placed(logps_N)
    return Scores(
        logps_BG=token_logps_BGT.sum(-1),
        token_logps_BGT=token_logps_BGT,
        token_mask_BGT=scored_BGT,
        token_excess_BGT=None if excess_N is None else placed(excess_N),
    )


def _completion_columns(mask_BGT: Tensor) -> int:
    """Width of the completion part: from the first column that any completion uses to the end."""
    used_T = mask_BGT.any(0).any(0)
    # A batch without a completion token still needs one column to score.
    return int(mask_BGT.shape[-1] - used_T.int().argmax()) if used_T.any() else 1


# Which rows --------------------------------------------------------------------------------------------------------


def _rows(causal: PreTrainedModel, anatomy: "Anatomy", completions: Completions, scoring: Scoring) -> Rows:
    if scoring.layout == "dense" or anatomy.dense_because is not None:
        return dense_rows(completions)
    if int(completions.attention_mask_BGT.sum(-1).max()) > anatomy.window:
        return dense_rows(completions)
    plan = plan_rows(completions, anatomy.pairs_per_token, in_pieces=_allows_pieces(causal))
    if scoring.layout == "auto" and (
        (causal.training and has_dropout(causal))
        or plan.cost(anatomy.pairs_per_token) >= dense_cost(completions, anatomy.pairs_per_token)
    ):
        return dense_rows(completions)
    return shared_rows(completions, plan, attention=_attention(causal), dtype=causal.dtype)


def _attention(causal: PreTrainedModel) -> str:
    return str(causal.config.get_text_config()._attn_implementation)


def _allows_pieces(causal: PreTrainedModel) -> bool:
    """Whether its attention is one that can be computed in pieces."""
    return _attention(causal) == "sdpa" and causal.device.type == "cpu" and has_kernel()


# What a model does with them -----------------------------------------------------------------------------------------


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The language model inside whatever distribution and adapters made of it.

    Raises:
        UserError: for an adapter that adds tokens of its own, which stand where nobody expects them.
    """
    while not isinstance(model, PreTrainedModel | PeftModel):
        inner = model._orig_mod if is_compiled_module(model) else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise UserError(
            f"expected an adapter inside the layers, such as LoRA, found {model.active_peft_config.peft_type.value}, "
            "which adds tokens before the prompt"
        )
    return model.get_base_model()


def _by_its_own_forward(
    model: nn.Module, completions: Completions, *, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [N] from logits of all completion columns at once."""
    width = completions.input_ids_BGT.shape[-1]
    columns = _completion_columns(completions.completion_mask_BGT)
    ids_NT = completions.input_ids_BGT.reshape(-1, width)
    attention_NT = completions.attention_mask_BGT.reshape(-1, width)
    scored_NT = scored_mask(completions).reshape(-1, width)[:, -columns:]
    logits_NTV = model(
        input_ids=ids_NT,
        attention_mask=attention_NT.long(),
        position_ids=(attention_NT.long().cumsum(-1) - 1).clamp(min=0),
        logits_to_keep=columns + 1,
        use_cache=False,
    ).logits[:, :-1]
    # They are the model's.
    logits_NTV = logits_NTV.to(torch.float32, copy=True)
    logps_NT, excess_NT = logps_of_logits(logits_NTV, ids_NT[:, -columns:], confidence=confidence)
    return logps_NT[scored_NT], None if excess_NT is None else excess_NT[scored_NT]


def _by_head(
    model: nn.Module, causal: PreTrainedModel, rows: Rows, *, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [N] from hidden states, caught where the backbone hands them to the rest of the model.

    Inside the model's own forward, so that whatever wraps it, distribution, adapters, precision, does its work.
    """
    found: list[tuple[Tensor, Tensor | None]] = []
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    logits_of: Callable[[Tensor], Tensor] = head

    def read(_: nn.Module, __: Any, output: Any) -> None:
        hidden_NH = output[0].flatten(0, 1)[rows.sources_N]
        found.append(logps_in_chunks(causal, logits_of, hidden_NH, rows.targets_N, confidence=confidence))

    handles = [causal.get_decoder().register_forward_hook(read)]
    if may_add_rows(causal):
        of_head_VH, of_rows_VH = TiedWeight.apply(embedding.weight)
        logits_of = partial(functional_call, head, {"weight": of_head_VH})

        def look_up(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> Tensor:
            return functional.embedding(*inputs, of_rows_VH, embedding.padding_idx, sparse=True)

        # Before the hooks of others, which may add noise.
        handles.append(embedding.register_forward_hook(look_up, prepend=True))
    try:
        model(
            input_ids=rows.input_ids_RW,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids_RW,
            # No logits of its own: even one position reads all weights of the head.
            logits_to_keep=torch.empty(0, dtype=torch.int64, device=rows.input_ids_RW.device),
            use_cache=False,
        )
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise _BackboneNotCalledError
    return found[0]


class _BackboneNotCalledError(Exception):
    """A model whose forward goes another way than through what it calls its decoder."""


# What is known of a model --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """How a model may be scored.

    Attributes:
        attention: the implementation of its attention.
        whole_because: why its head cannot be applied apart; ``None`` where it can.
        dense_because: why prompts cannot be shared; ``None`` where they can.
        window: tokens of a sequence up to which every layer sees all of it.
        pairs_per_token: what a layer does with a token, in pairs of positions of its attention.
    """

    attention: str
    whole_because: str | None
    dense_because: str | None
    window: float
    pairs_per_token: float


_KNOWN: "WeakKeyDictionary[nn.Module, Anatomy]" = WeakKeyDictionary()


def anatomy_of(causal: PreTrainedModel) -> Anatomy:
    """What is known of a language model; the first time a few tokens are scored in every way."""
    if causal not in _KNOWN or _KNOWN[causal].attention != _attention(causal):
        _KNOWN[causal] = _examine(causal)
    return _KNOWN[causal]


@torch.no_grad()
def _examine(causal: PreTrainedModel) -> Anatomy:
    pairs_per_token = _PAIRS_PER_TOKEN_AND_WIDTH * float(causal.config.get_text_config().hidden_size)
    was_training = causal.training
    causal.eval()
    if _attention(causal) == "flex_attention":
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_KERNELS)
    whole_because = _why_whole(causal)
    dense_because = whole_because or _why_dense(causal, pairs_per_token)
    causal.train(was_training)
    return Anatomy(
        attention=_attention(causal),
        whole_because=whole_because,
        dense_because=dense_because,
        window=settings_of(causal).get("sliding_window") or math.inf,
        pairs_per_token=pairs_per_token,
    )


def _why_whole(causal: PreTrainedModel) -> str | None:
    if causal.get_decoder() is causal or causal.get_output_embeddings() is None:
        return f"{type(causal).__name__} has no backbone and head of their own"
    try:
        difference = _difference(causal, dense_rows(_probe(causal)))
    except _BackboneNotCalledError:
        return f"the forward of {type(causal).__name__} goes past its decoder"
    return None if difference is None else f"its head does more than is known: its own log-probs differ by {difference}"


def _why_dense(causal: PreTrainedModel, pairs_per_token: float) -> str | None:
    attention, kinds = _attention(causal), set(settings_of(causal).get("layer_types") or ()) - _KINDS
    if attention not in MASKED_ATTENTIONS:
        return f"the attention '{attention}' takes no mask of blocks (policy.attn_implementation: sdpa does)"
    if kinds:
        return f"layers of the kind {', '.join(sorted(kinds))} see more than their attention's mask says"
    if not causal._supports_attention_backend:
        return f"{type(causal).__name__} does not leave to a mask what its attention sees"
    probe = _probe(causal)
    masked = plan_rows(probe, pairs_per_token, in_pieces=False)
    plans = [masked, replace(masked, in_pieces=True)] if _allows_pieces(causal) else [masked]
    for plan in plans:
        difference = _difference(causal, shared_rows(probe, plan, attention=attention, dtype=causal.dtype))
        if difference is not None:
            return f"log-probs with a shared prompt differ by {difference}"
    return None


def _difference(causal: PreTrainedModel, rows: Rows) -> str | None:
    """How far the log-probs of a few tokens are from those of the model's own forward, where that is too far."""
    logps_N, _ = _by_head(causal, causal, rows, confidence=False)
    own_N, _ = _by_its_own_forward(causal, _probe(causal), confidence=False)
    is_rounded = causal.device.type != "cpu" or causal.dtype.itemsize < 4
    relative, absolute = _ROUNDED_TOLERANCE if is_rounded else _TOLERANCE
    difference = float((logps_N - own_N).square().mean().sqrt())
    # A comparison with nan is false: too far.
    is_near = difference <= absolute + relative * float(own_N.std())
    return None if is_near else f"{difference:.2g} nats, where they spread by {float(own_N.std()):.2g}"


def _probe(causal: PreTrainedModel) -> Completions:
    """Two prompts of different lengths with two and three completions, tokens from all over the vocabulary."""
    prompts, answers = (6, 3), ((4, 2, 0), (1, 3, 5))
    width = max(prompts) + max(max(group) for group in answers)
    place_T = torch.arange(width) - max(prompts)
    prompt_BGT = (place_T < 0) & (place_T >= -torch.tensor(prompts)[:, None, None])
    answer_BGT = (place_T >= 0) & (place_T < torch.tensor(answers)[..., None])
    attention_BGT = prompt_BGT | answer_BGT
    place_BGT = torch.arange(attention_BGT.numel()).reshape(attention_BGT.shape)
    # A group has one prompt.
    place_BGT = torch.where(prompt_BGT, place_BGT[:, :1], place_BGT)
    completions = Completions(
        input_ids_BGT=place_BGT * _STRIDE % int(causal.config.get_text_config().vocab_size),
        attention_mask_BGT=attention_BGT,
        completion_mask_BGT=answer_BGT,
        valid_BG=answer_BGT.any(-1),
    )
    return completions.to(causal.device)


def has_dropout(model: nn.Module) -> bool:
    """Whether a model draws noise while it trains."""
    settings = settings_of(causal_lm(model))
    return any(settings.get(key) for key in ("attention_dropout", "attn_pdrop")) or any(
        isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules()
    )


# What was chosen for a model -----------------------------------------------------------------------------------------

_CHOSEN: "WeakKeyDictionary[nn.Module, Scoring]" = WeakKeyDictionary()


def scoring_of(model: nn.Module) -> Scoring:
    """How a model is scored; automatic where nobody has chosen."""
    return _CHOSEN.get(causal_lm(model), Scoring())


def choose_scoring(model: nn.Module, scoring: Scoring) -> None:
    """Decide how :func:`score` scores a model from now on."""
    _CHOSEN[causal_lm(model)] = scoring


def describe_scoring(model: nn.Module, device: torch.device) -> tuple[str, ...]:
    """How a model is scored and why so, a line each for prompts and logits.

    Args:
        model: a causal language model, wrapped or not.
        device: where it will be; one that is not there yet, or not whole, is looked over when it is first scored.

    Raises:
        UserError: where the model does not allow what was chosen.
    """
    causal, scoring = causal_lm(model), scoring_of(model)
    if causal.device.type != device.type or not all(parameter.numel() for parameter in causal.parameters()):
        return ("prefix sharing: decided at the first batch (the weights are not in their place yet)",)
    anatomy = _allowed_anatomy(causal, scoring)
    return _describe_sharing(model, anatomy, scoring), _describe_logits(anatomy, scoring)


def _allowed_anatomy(causal: PreTrainedModel, scoring: Scoring) -> Anatomy:
    """What is known of a model that allows what is asked for."""
    anatomy = anatomy_of(causal)
    if scoring.logits == "chunked" and anatomy.whole_because is not None:
        raise UserError(f"scoring.logits: expected a model that allows 'chunked', but {anatomy.whole_because}")
    if scoring.layout == "prefix" and anatomy.dense_because is not None:
        raise UserError(f"scoring.layout: expected a model that allows 'prefix', but {anatomy.dense_because}")
    return anatomy


def _describe_sharing(model: nn.Module, anatomy: Anatomy, scoring: Scoring) -> str:
    if scoring.logits == "whole":
        return "prefix sharing: off (scoring.logits: whole)"
    if scoring.layout == "dense":
        return "prefix sharing: off (scoring.layout: dense)"
    if anatomy.dense_because is not None:
        return f"prefix sharing: off ({anatomy.dense_because})"
    if scoring.layout == "auto" and has_dropout(model):
        return "prefix sharing: off while training (dropout: completions of a prompt would share the prompt's noise)"
    when = "in every batch" if scoring.layout == "prefix" else "in every batch that costs less that way"
    fitting = "" if anatomy.window == math.inf else f" and fits the attention's window of {anatomy.window:,} tokens"
    return f"prefix sharing: on ({when}{fitting}; log-probs with a shared prompt agree with those of single rows)"


def _describe_logits(anatomy: Anatomy, scoring: Scoring) -> str:
    if scoring.logits == "whole":
        return "logits: all at once (scoring.logits: whole)"
    if anatomy.whole_because is not None:
        return f"logits: all at once ({anatomy.whole_because})"
    return f"logits: of completion tokens only, at most {MAX_LOGITS:,} at a time (the model's own log-probs agree)"
