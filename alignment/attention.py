"""Attention over rows that hold a prompt once for all of its completions, piece by piece.

Under a mask SDPA computes every pair of tokens of a row, also those that it then masks out, which are most. Here a
prompt looks at itself in one call, and completions look at their prompt and themselves in another; parts of about the
same lengths share a call. A mask stands for this on its way through a model, in the manner of
``torch.nn.attention.bias``: SDPA leaves the work to it, and to everything else it is a tensor of booleans.

Shape letters: ``R`` rows, ``W`` their width, ``M`` their places one after the other; ``H`` heads, ``D`` features of one;
``S`` parts that share a call, ``Q`` their queries, ``K`` their keys.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only


class Part(NamedTuple):
    """A prompt, or a completion of one: it sees ``prompt`` tokens from the start of its group, and itself up to there.

    Attributes:
        group: in which it stands.
        offset: tokens of the group before it.
        prompt: how many of these are the prompt; none where this is the prompt.
        length: its own tokens, at least one.
    """

    group: int
    offset: int
    prompt: int
    length: int


def num_pairs(parts: Sequence[Part]) -> float:
    """Pairs of positions that a head looks at, padding included; of a prompt the causal half is skipped."""
    calls = ((len(call), *_lengths(call)) for call in _calls(parts))
    return sum(count * own * (prompt + own if prompt else own / 2) for count, prompt, own in calls)


def _calls(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts that share a call: no length is twice another's."""
    calls = defaultdict(list)
    for part in parts:
        calls[part.prompt.bit_length(), part.length.bit_length()].append(part)
    return list(calls.values())


def _lengths(call: Sequence[Part]) -> tuple[int, int]:
    """The longest prompt and the longest part of a call."""
    return max(part.prompt for part in call), max(part.length for part in call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A call of SDPA. Its padding is any place: nobody sees that as a key, or reads what it sees as a query.

    Attributes:
        queries_SQ: places in the flattened rows.
        keys_SK: the same.
        seen_S1QK: true where a query sees a key; ``None`` where it sees the keys up to itself.
        is_own_SQ: false on padding.
    """

    queries_SQ: Tensor
    keys_SK: Tensor
    seen_S1QK: Tensor | None
    is_own_SQ: Tensor


def _piece(call: Sequence[Part], starts_B: Tensor, num_places: int) -> Piece:
    device = starts_B.device
    group_S1, offset_S1, prompt_S1, length_S1 = torch.tensor(call, device=device)[..., None].unbind(1)
    prompt, own = _lengths(call)
    place_P, place_Q = torch.arange(prompt, device=device), torch.arange(own, device=device)
    start_S1 = starts_B[group_S1]
    queries_SQ = (start_S1 + offset_S1 + place_Q).clamp(max=num_places - 1)
    is_own_SQ = place_Q < length_S1
    if not prompt:
        return Piece(queries_SQ=queries_SQ, keys_SK=queries_SQ, seen_S1QK=None, is_own_SQ=is_own_SQ)
    is_prompt_SQP = (place_P < prompt_S1)[:, None].expand(-1, own, -1)
    is_past_SQQ = (place_Q <= place_Q[:, None]).expand(len(call), -1, -1)
    return Piece(
        queries_SQ=queries_SQ,
        keys_SK=torch.cat([(start_S1 + place_P).clamp(max=num_places - 1), queries_SQ], dim=1),
        seen_S1QK=torch.cat([is_prompt_SQP, is_past_SQQ], dim=-1)[:, None],
        is_own_SQ=is_own_SQ,
    )


# What is asked of a mask on its way through a model.
_KNOWN_WITHOUT = [attribute.__get__ for attribute in (Tensor.shape, Tensor.ndim, Tensor.dtype, Tensor.device)]


class PiecewiseMask(Tensor):
    """A mask [R, 1, W, W], true where seen, that is nowhere held: SDPA computes it in pieces.

    Attributes:
        pieces: of all rows.
        order_M: of each place its row among the queries of all pieces; places without a token take any.
        whole: makes the mask itself, for whatever is no SDPA.
    """

    pieces: tuple[Piece, ...]
    order_M: Tensor
    whole: Callable[[], Tensor]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if function not in _KNOWN_WITHOUT:
            args, kwargs = tree_map_only(PiecewiseMask, lambda mask: mask.whole(), (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)


def piecewise_mask(
    parts: Sequence[Part], starts_B: Tensor, *, num_rows: int, width: int, whole: Callable[[], Tensor]
) -> PiecewiseMask:
    """What the tokens of shared rows see.

    Args:
        parts: of all groups.
        starts_B: places in the flattened rows at which the groups start.
        num_rows: R.
        width: W.
        whole: makes the same as a tensor [R, 1, W, W].
    """
    num_places = num_rows * width
    pieces = tuple(_piece(call, starts_B, num_places) for call in _calls(parts))
    is_own = torch.cat([piece.is_own_SQ.flatten() for piece in pieces])
    places = torch.cat([piece.queries_SQ.flatten() for piece in pieces])[is_own]
    order_M = torch.zeros(num_places, dtype=torch.int64, device=starts_B.device)
    order_M[places] = is_own.nonzero()[:, 0]
    nothing = torch.zeros((), dtype=torch.bool, device=starts_B.device)
    mask = nothing.expand(num_rows, 1, width, width).as_subclass(PiecewiseMask)
    mask.pieces, mask.order_M, mask.whole = pieces, order_M, whole
    return mask


def _attend(
    query_RHWD: Tensor,
    key_RHWD: Tensor,
    value_RHWD: Tensor,
    attn_mask: PiecewiseMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """``scaled_dot_product_attention`` under a mask in pieces."""
    assert not is_causal
    query_MHD, key_MHD, value_MHD = (_by_place(tensor) for tensor in (query_RHWD, key_RHWD, value_RHWD))
    outputs = []
    for piece in attn_mask.pieces:
        output_SHQD = scaled_dot_product_attention(
            _taken(query_MHD, piece.queries_SQ),
            _taken(key_MHD, piece.keys_SK),
            _taken(value_MHD, piece.keys_SK),
            attn_mask=piece.seen_S1QK,
            dropout_p=dropout_p,
            is_causal=piece.seen_S1QK is None,
            **options,
        )
        outputs.append(_by_place(output_SHQD))
    output_MHD = torch.cat(outputs).index_select(0, attn_mask.order_M)
    return output_MHD.unflatten(0, (query_RHWD.shape[0], -1)).transpose(1, 2)


def _by_place(tensor_RHWD: Tensor) -> Tensor:
    return tensor_RHWD.transpose(1, 2).flatten(0, 1)


def _taken(tensor_MHD: Tensor, places_SQ: Tensor) -> Tensor:
    """[S, H, Q, D]."""
    return tensor_MHD.index_select(0, places_SQ.flatten()).unflatten(0, places_SQ.shape).transpose(1, 2)
