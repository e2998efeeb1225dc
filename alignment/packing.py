"""Completions as the rows that a model reads: a row for each of them, or every prompt once for all of its completions.

A shared row is [prompt, completion 1, ..., completion G], several of these one after the other, without padding where
that costs nothing. A token sees what stands before it in its prompt and in its own completion, positions go on from the
end of the prompt in every completion, and the first token of each is predicted at the prompt's last. So the model sees
what it would see of each completion alone.

Shape letters: ``B`` prompts, ``G`` completions of a prompt, ``T`` columns; ``R`` rows, ``W`` their width; ``M`` tokens
that stand in rows, ``N`` those of them that belong to a completion, in the order of ``Completions``.
"""

import functools
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from alignment.attention import Group, piecewise_mask
from alignment.types import Completions

# Rows may be wider apart than their tokens by this much: more padding is paid in every layer.
_MAX_PADDING = 1.05

# What a token costs in pieces of attention beside its pairs, in pairs: it is copied in and out of them. Measured with
# heads of 64 features: 150 with one thread, 120 to 240 and 290 with two, by the machine.
_PAIRS_PER_TOKEN_IN_PIECES = 180

MASKED_ATTENTIONS = ("sdpa", "eager", "flex_attention")
"""Attention implementations of transformers that take a mask of blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a model reads, and where it predicts the tokens of the completions.

    Attributes:
        input_ids_RW: padded with zeros.
        position_ids_RW: of each token in its own sequence.
        attention_mask: true on tokens [R, W]; or what each token sees, in the form that the attention takes.
        sources_N: places in the flattened rows whose hidden states predict the tokens of the completions.
        targets_N: these tokens.
    """

    input_ids_RW: Tensor
    position_ids_RW: Tensor
    attention_mask: Tensor | BlockMask
    sources_N: Tensor
    targets_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which row each group stands in, and where.

    Attributes:
        row_B: the row of each group.
        start_B: the column at which it starts.
        num_rows: R.
        width: W.
        num_pairs: of positions that a head of the attention looks at; under a mask all of a row.
        in_pieces: whether the attention is computed in pieces instead.
    """

    row_B: tuple[int, ...]
    start_B: tuple[int, ...]
    num_rows: int
    width: int
    num_pairs: float
    in_pieces: bool

    def cost(self, pairs_per_token: float) -> float:
        """In pairs of positions of one attention head; what else a layer does with a token counts as so many pairs."""
        return self.num_rows * self.width * pairs_per_token + self.num_pairs


def scored_mask(completions: Completions) -> Tensor:
    """The completion tokens [B, G, T] whose log-probs somebody reads: not those of responses that left their group."""
    return completions.completion_mask_BGT & completions.valid_BG[..., None]


def dense_cost(completions: Completions, pairs_per_token: float) -> float:
    """What :func:`dense_rows` cost, in the unit of :meth:`Plan.cost`; without padding the causal half is skipped."""
    is_read_BG = scored_mask(completions).any(-1)
    width = completions.input_ids_BGT.shape[-1]
    is_full = bool((completions.attention_mask_BGT.all(-1) | ~is_read_BG).all())
    return int(is_read_BG.sum()) * width * (pairs_per_token + width * (0.5 if is_full else 1.0))


def dense_rows(completions: Completions) -> Rows:
    """A row for each completion that has tokens, padded as the completions are."""
    width = completions.input_ids_BGT.shape[-1]
    scored_NT = scored_mask(completions).reshape(-1, width)
    is_read_N = scored_NT.any(-1)
    # A batch without a completion token still has a shape.
    is_read_N[0] |= ~is_read_N.any()
    ids_RW, scored_RW = completions.input_ids_BGT.reshape(-1, width)[is_read_N], scored_NT[is_read_N]
    attention_RW = completions.attention_mask_BGT.reshape(-1, width)[is_read_N]
    places_N = scored_RW.flatten().nonzero()[:, 0]
    return Rows(
        input_ids_RW=ids_RW,
        # Left padding moves the first token away from column 0; a fully padded row gets position 0 throughout.
        position_ids_RW=(attention_RW.long().cumsum(-1) - 1).clamp(min=0),
        attention_mask=attention_RW.long(),
        sources_N=places_N - 1,
        targets_N=ids_RW.flatten()[places_N],
    )


def plan_rows(completions: Completions, pairs_per_token: float, *, in_pieces: bool) -> Plan:
    """The cheapest division of the groups into shared rows among those that pad little.

    Args:
        completions: of which a group has one prompt.
        pairs_per_token: as in :meth:`Plan.cost`.
        in_pieces: whether the attention can be computed in pieces (:mod:`alignment.attention`) where that is cheaper.
    """
    sizes_B = _in_rows(completions).sum((1, 2)).tolist()
    most_tokens = _MAX_PADDING * sum(sizes_B)
    # No row is shorter than the longest group. Of plans that cost the same the first one has the shortest rows.
    plans = [_divide(sizes_B, num_rows) for num_rows in range(int(most_tokens / max(sizes_B)), 0, -1)]
    if in_pieces:
        num_pairs = _pairs_in_pieces(completions)
        plans += [replace(plan, in_pieces=True, num_pairs=num_pairs) for plan in plans]
    return min(
        (plan for plan in plans if plan.num_rows * plan.width <= most_tokens),
        key=lambda plan: plan.cost(pairs_per_token),
    )


def _pairs_in_pieces(completions: Completions) -> float:
    """Of the causal halves of prompts and completions, and of completions with prompts; copies count as pairs."""
    completion_BG, prompt_B = _lengths(completions)
    num_tokens_B = prompt_B + completion_BG.sum(1)
    halves = float(prompt_B.square().sum() + completion_BG.square().sum()) / 2
    of_both = float((prompt_B * completion_BG.sum(1)).sum())
    return halves + of_both + _PAIRS_PER_TOKEN_IN_PIECES * float(num_tokens_B.sum())


def _lengths(completions: Completions) -> tuple[Tensor, Tensor]:
    """Tokens of completions [B, G] that somebody reads, and of prompts [B]."""
    completion_BG = scored_mask(completions).sum(-1)
    return completion_BG, _in_rows(completions).sum((1, 2)) - completion_BG.sum(1)


def _divide(sizes_B: Sequence[int], num_rows: int) -> Plan:
    """The largest group first, each into the row that is shortest so far."""
    fills = [(0, row) for row in range(num_rows)]
    row_B, start_B = [0] * len(sizes_B), [0] * len(sizes_B)
    for b in sorted(range(len(sizes_B)), key=lambda b: -sizes_B[b]):
        start_B[b], row_B[b] = fills[0]
        heapq.heapreplace(fills, (start_B[b] + sizes_B[b], row_B[b]))
    width = max(fills)[0]
    return Plan(
        row_B=tuple(row_B),
        start_B=tuple(start_B),
        num_rows=num_rows,
        width=width,
        num_pairs=num_rows * width * width,
        in_pieces=False,
    )


def shared_rows(completions: Completions, plan: Plan, *, attention: str, dtype: torch.dtype) -> Rows:
    """Every prompt once, followed by all of its completions.

    Args:
        completions: of which a group has one prompt.
        plan: of the same completions.
        attention: one of ``MASKED_ATTENTIONS``; in pieces ``sdpa`` on a CPU.
        dtype: of the model, for a mask that is added.
    """
    _, num_completions, width = completions.input_ids_BGT.shape
    device = completions.input_ids_BGT.device
    in_rows_BGT = _in_rows(completions)
    # In this order a group is its prompt, which only its first completion brings, and its completions.
    order_M = in_rows_BGT.flatten().nonzero()[:, 0]
    group_M = order_M // (num_completions * width)
    is_scored_M = scored_mask(completions).flatten()[order_M]
    segment_M = torch.where(is_scored_M, order_M // width % num_completions + 1, 0)
    start_B = torch.tensor(plan.row_B, device=device) * plan.width + torch.tensor(plan.start_B, device=device)
    sizes_B = in_rows_BGT.sum((1, 2))
    rank_M = torch.arange(len(order_M), device=device) - (sizes_B.cumsum(0) - sizes_B)[group_M]
    places_M = start_B[group_M] + rank_M
    prompt_ends_B = start_B + (sizes_B - scored_mask(completions).sum((1, 2))) - 1
    is_first_M = segment_M != segment_M.roll(1)
    sources_M = torch.where(is_first_M, prompt_ends_B[group_M], places_M - 1)

    def rows(values_M: Tensor, padding: int) -> Tensor:
        flat = torch.full((plan.num_rows * plan.width,), padding, dtype=torch.int64, device=device)
        return flat.index_put((places_M,), values_M).reshape(plan.num_rows, plan.width)

    ids_M = completions.input_ids_BGT.flatten()[order_M]
    position_M = (completions.attention_mask_BGT.long().cumsum(-1) - 1).flatten()[order_M]
    # Padding is a group of its own: what sees nothing has no number.
    group_RW, segment_RW = rows(group_M, -1), rows(segment_M, 0)
    if plan.in_pieces:
        whole = functools.cache(lambda: _seen_mask(group_RW, segment_RW))
        groups = _groups(completions, plan)
        mask: Tensor | BlockMask = piecewise_mask(groups, num_rows=plan.num_rows, width=plan.width, whole=whole)
    elif attention == "sdpa":
        mask = _seen_mask(group_RW, segment_RW)
    elif attention == "flex_attention":
        mask = _block_mask(group_RW, segment_RW)
    else:
        mask = _added_mask(group_RW, segment_RW, dtype)
    return Rows(
        input_ids_RW=rows(ids_M, 0),
        position_ids_RW=rows(position_M, 0),
        attention_mask=mask,
        sources_N=sources_M[is_scored_M],
        targets_N=ids_M[is_scored_M],
    )


def _groups(completions: Completions, plan: Plan) -> list[Group]:
    """Where the groups stand, and each completion that has tokens."""
    completion_BG, prompt_B = (lengths.tolist() for lengths in _lengths(completions))
    groups = []
    for row, start, prompt, lengths in zip(plan.row_B, plan.start_B, prompt_B, completion_BG, strict=True):
        ends = list(itertools.accumulate(lengths, initial=start + prompt))
        spans = tuple(slice(first, last) for first, last in itertools.pairwise(ends) if first < last)
        group = Group(row=row, tokens=slice(start, ends[-1]), prompt=slice(start, start + prompt), completions=spans)
        groups.append(group)
    return groups


def _in_rows(completions: Completions) -> Tensor:
    """The tokens [B, G, T] that stand in shared rows: each prompt once, and the completions."""
    in_rows_BGT = scored_mask(completions)
    prompt_BT = completions.attention_mask_BGT[:, 0] & ~completions.completion_mask_BGT[:, 0]
    return torch.cat([in_rows_BGT[:, :1] | prompt_BT[:, None], in_rows_BGT[:, 1:]], dim=1)


SeenByIndex = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]


def _seen_by_index(group_RW: Tensor, segment_RW: Tensor) -> SeenByIndex:
    """Row, head, query and key -> whether the token at ``query`` sees that at ``key``.

    It sees of its group the prompt (segment 0) and its own segment, up to itself.
    """

    def is_seen(row: Tensor, _: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
        is_own = (segment_RW[row, key] == 0) | (segment_RW[row, key] == segment_RW[row, query])
        return is_own & (group_RW[row, key] == group_RW[row, query]) & (key <= query)

    return is_seen


def _seen_mask(group_RW: Tensor, segment_RW: Tensor) -> Tensor:
    """[R, 1, W, W], true where seen."""
    row_R, place_W = (torch.arange(size, device=group_RW.device) for size in group_RW.shape)
    return _seen_by_index(group_RW, segment_RW)(row_R[:, None, None], None, place_W[:, None], place_W)[:, None]


def _added_mask(group_RW: Tensor, segment_RW: Tensor, dtype: torch.dtype) -> Tensor:
    """The same for eager attention, which adds its mask."""
    seen_R1WW = _seen_mask(group_RW, segment_RW)
    return torch.zeros(seen_R1WW.shape, dtype=dtype, device=seen_R1WW.device).masked_fill(~seen_R1WW, -torch.inf)


# Compiled once for forwards with gradient and without.
@torch.no_grad()
def _block_mask(group_RW: Tensor, segment_RW: Tensor) -> BlockMask:
    """The same for FlexAttention, which skips blocks of which nothing is seen."""
    num_rows, width = group_RW.shape
    mask: BlockMask = _compiled_maker()(
        _seen_by_index(group_RW, segment_RW), B=num_rows, H=None, Q_LEN=width, KV_LEN=width, device=group_RW.device
    )
    return mask


@functools.cache
def _compiled_maker() -> Callable[..., BlockMask]:
    """Compiled it holds no mask of all pairs; torch takes seconds to load its compiler."""
    return torch.compile(create_block_mask)
