"""Attention over rows that hold a prompt once for all of its completions, piece by piece, on a CPU.

Under a mask SDPA computes every pair of tokens of a row, also those that it then masks out, which are most. Here a group
looks at its prompt, causally, which for a completion means all of it, and each completion at itself. What a completion
sees in the two is joined by the normalisers of their softmaxes, which SDPA's own kernel gives; its gradients, given the
joint normaliser, add up to those of the whole (as in ring attention, 2310.01889).

A mask stands for this on its way through a model, in the manner of ``torch.nn.attention.bias``: SDPA leaves the work to
it, and to everything else it is a tensor of booleans.

Shape letters: ``R`` rows, ``W`` their width; ``H`` heads, ``D`` features of one; ``Q`` queries, ``K`` keys.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Group(NamedTuple):
    """Where a prompt and its completions stand, one after the other.

    Attributes:
        row: the row.
        start: the column of the prompt's first token.
        prompt: tokens of the prompt, at least one.
        completions: tokens of each completion, at least one.
    """

    row: int
    start: int
    prompt: int
    completions: tuple[int, ...]


def num_pairs(groups: Sequence[tuple[int, tuple[int, ...]]]) -> float:
    """Pairs of positions that a head looks at, by the tokens of prompts and completions."""
    return sum(
        prompt * (prompt / 2 + sum(completions)) + sum(own * own for own in completions) / 2
        for prompt, completions in groups
    )


# What is asked of a mask on its way through a model.
_KNOWN_WITHOUT = [attribute.__get__ for attribute in (Tensor.shape, Tensor.ndim, Tensor.dtype, Tensor.device)]


class PiecewiseMask(Tensor):
    """A mask [R, 1, W, W], true where seen, that is nowhere held: SDPA computes it in pieces.

    Attributes:
        groups: of all rows.
        whole: makes the mask itself, for whatever is no SDPA.
    """

    groups: tuple[Group, ...]
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


def piecewise_mask(groups: Sequence[Group], *, num_rows: int, width: int, whole: Callable[[], Tensor]) -> PiecewiseMask:
    """What the tokens of shared rows see.

    Args:
        groups: of all rows.
        num_rows: R.
        width: W.
        whole: makes the same as a tensor [R, 1, W, W].
    """
    mask = torch.zeros((), dtype=torch.bool).expand(num_rows, 1, width, width).as_subclass(PiecewiseMask)
    mask.groups, mask.whole = tuple(groups), whole
    return mask


def _attend(
    query_RHWD: Tensor,
    key_RHWD: Tensor,
    value_RHWD: Tensor,
    attn_mask: PiecewiseMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` under a mask in pieces."""
    inputs = (query_RHWD, key_RHWD, value_RHWD)
    if torch.is_autocast_enabled("cpu"):
        inputs = tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in inputs)
    output_RHWD: Tensor = _InPieces.apply(*inputs, attn_mask.groups, scale)
    return output_RHWD


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_RHWD: Tensor, key_RHWD: Tensor, value_RHWD: Tensor, groups: tuple[Group, ...], scale: float
    ) -> Tensor:
        output_RHWD = torch.zeros_like(query_RHWD)
        log_z_RHW = torch.zeros(query_RHWD.shape[:-1], dtype=torch.promote_types(query_RHWD.dtype, torch.float32))
        for row, start, prompt, completions in groups:
            size = prompt + sum(completions)
            query, output = (x[row, None, :, start : start + size] for x in (query_RHWD, output_RHWD))
            key, value = (x[row, None, :, start : start + prompt] for x in (key_RHWD, value_RHWD))
            part, log_z = _forward(query, key, value, 0.0, True, scale=scale)
            place = prompt
            for own in completions:
                here = slice(start + place, start + place + own)
                own_part, own_log_z = _forward(
                    *(x[row, None, :, here] for x in (query_RHWD, key_RHWD, value_RHWD)), 0.0, True, scale=scale
                )
                there = slice(place, place + own)
                weight = torch.sigmoid(own_log_z - log_z[:, :, there])[..., None].to(part.dtype)
                part[:, :, there].lerp_(own_part, weight)
                log_z[:, :, there] = torch.logaddexp(log_z[:, :, there], own_log_z)
                place += own
            output.copy_(part)
            log_z_RHW[row, :, start : start + size] = log_z[0]
        ctx.save_for_backward(query_RHWD, key_RHWD, value_RHWD, output_RHWD, log_z_RHW)
        ctx.groups, ctx.scale = groups, scale
        return output_RHWD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RHWD: Tensor):
        query_RHWD, key_RHWD, value_RHWD, output_RHWD, log_z_RHW = ctx.saved_tensors
        grads = tuple(torch.zeros_like(x) for x in (query_RHWD, key_RHWD, value_RHWD))

        def add(row, queries, keys):
            found = _backward(
                grad_RHWD[row, None, :, queries],
                query_RHWD[row, None, :, queries],
                key_RHWD[row, None, :, keys],
                value_RHWD[row, None, :, keys],
                output_RHWD[row, None, :, queries],
                log_z_RHW[row, None, :, queries],
                0.0,
                True,
                scale=ctx.scale,
            )
            for g, f, w in zip(grads, found, (queries, keys, keys), strict=True):
                g[row, :, w] += f[0]

        for row, start, prompt, completions in ctx.groups:
            size = prompt + sum(completions)
            add(row, slice(start, start + size), slice(start, start + prompt))
            place = start + prompt
            for own in completions:
                here = slice(place, place + own)
                add(row, here, here)
                place += own
        return *grads, None, None
