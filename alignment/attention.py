"""Attention over rows that hold a prompt once for all of its completions, piece by piece, on a CPU.

Under a mask SDPA computes every pair of tokens of a row, also those that it then masks out, which are most. Here the
tokens of a group look at its prompt, causally, which for those of completions is all of it, and those of a completion
once more at their own. The normalisers of the two softmaxes, which SDPA's kernel gives, say how to weigh what was seen
in both; given the joint normaliser the kernel's gradients add up to those of the whole. Ring Attention (2310.01889)
puts sequences together that way.

A mask stands for this on its way through a model, in the manner of ``torch.nn.attention.bias``: SDPA leaves the work to
it, and to everything else it is a tensor of booleans.

Shape letters: ``R`` rows, ``W`` their width, ``H`` heads, ``D`` features of one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only

# The kernel behind ``scaled_dot_product_attention`` on a CPU, which alone gives and takes the normalisers.
_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


def has_kernel() -> bool:
    """Whether this torch has the kernel. Its name is not public."""
    return all(torch._C._dispatch_has_kernel(f"aten::{name}") for name in (_KERNEL, f"{_KERNEL}_backward"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A prompt and the completions after it.

    Attributes:
        row: in which they stand.
        tokens: columns of all of them.
        prompt: columns of the prompt.
        completions: columns of each completion.
    """

    row: int
    tokens: slice
    prompt: slice
    completions: tuple[slice, ...]


class PiecewiseMask(Tensor):
    """A mask [R, 1, W, W], true where seen, that is nowhere held: SDPA computes it in pieces.

    Attributes:
        groups: of all rows.
        whole: the mask itself, for whatever is no SDPA.
    """

    groups: Sequence[Group]
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


# What transformers asks of a mask on its way.
_ATTRIBUTES: tuple[Any, ...] = (Tensor.shape, Tensor.ndim, Tensor.dtype, Tensor.device)
_KNOWN_WITHOUT = [attribute.__get__ for attribute in _ATTRIBUTES]


def piecewise_mask(groups: Sequence[Group], *, num_rows: int, width: int, whole: Callable[[], Tensor]) -> PiecewiseMask:
    """What the tokens of shared rows see.

    Args:
        groups: of all rows; places in none of them are padding.
        num_rows: R.
        width: W.
        whole: gives the same as a tensor [R, 1, W, W].
    """
    mask = torch.zeros((), dtype=torch.bool).expand(num_rows, 1, width, width).as_subclass(PiecewiseMask)
    mask.groups, mask.whole = groups, whole
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
    if dropout_p or not query_RHWD.shape == key_RHWD.shape == value_RHWD.shape:
        # Noise, heads that share a key, values of another width: more than the kernel does.
        return scaled_dot_product_attention(
            query_RHWD, key_RHWD, value_RHWD, attn_mask.whole(), dropout_p=dropout_p, **options
        )
    tensors = [query_RHWD, key_RHWD, value_RHWD]
    if torch.is_autocast_enabled("cpu"):
        tensors = [tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors]
    output_RHWD: Tensor = _InPieces.apply(*tensors, attn_mask.groups, options.get("scale"))
    return output_RHWD


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_RHWD: Tensor,
        key_RHWD: Tensor,
        value_RHWD: Tensor,
        groups: Sequence[Group],
        scale: float | None,
    ) -> Tensor:
        output_RHWD = torch.zeros_like(query_RHWD)
        log_z_dtype = torch.promote_types(query_RHWD.dtype, torch.float32)
        log_z_RHW = torch.zeros(query_RHWD.shape[:-1], dtype=log_z_dtype)

        forward = getattr(torch.ops.aten, _KERNEL)

        def look(row: int, queries: slice, keys: slice) -> tuple[Tensor, Tensor]:
            inputs = (query_RHWD[row, None, :, queries], key_RHWD[row, None, :, keys], value_RHWD[row, None, :, keys])
            return forward(*inputs, 0.0, True, scale=scale)  # no dropout, causal

        for group in groups:
            seen, log_z = look(group.row, group.tokens, group.prompt)
            output_RHWD[group.row, None, :, group.tokens] = seen
            log_z_RHW[group.row, None, :, group.tokens] = log_z
            for own in group.completions:
                seen, log_z = look(group.row, own, own)
                prompt_log_z = log_z_RHW[group.row, None, :, own]
                weight = torch.sigmoid(log_z - prompt_log_z)[..., None].to(seen.dtype)
                output_RHWD[group.row, None, :, own].lerp_(seen, weight)
                prompt_log_z.copy_(torch.logaddexp(prompt_log_z, log_z))
        ctx.save_for_backward(query_RHWD, key_RHWD, value_RHWD, output_RHWD, log_z_RHW)
        ctx.groups, ctx.scale = groups, scale
        return output_RHWD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RHWD: Tensor) -> tuple[Tensor | None, ...]:
        query_RHWD, key_RHWD, value_RHWD, output_RHWD, log_z_RHW = ctx.saved_tensors
        # The kernel reads features that lie side by side; the gradient of a sum has none.
        grad_RHWD = grad_RHWD.contiguous()
        grads = [torch.zeros_like(tensor) for tensor in (query_RHWD, key_RHWD, value_RHWD)]

        backward = getattr(torch.ops.aten, f"{_KERNEL}_backward")

        def look_back(row: int, queries: slice, keys: slice) -> None:
            inputs = (
                *(tensor[row, None, :, queries] for tensor in (grad_RHWD, query_RHWD)),
                *(tensor[row, None, :, keys] for tensor in (key_RHWD, value_RHWD)),
                *(tensor[row, None, :, queries] for tensor in (output_RHWD, log_z_RHW)),
            )
            found = backward(*inputs, 0.0, True, scale=ctx.scale)
            for grad, part, columns in zip(grads, found, (queries, keys, keys), strict=True):
                grad[row, None, :, columns] += part

        for group in ctx.groups:
            look_back(group.row, group.tokens, group.prompt)
            for own in group.completions:
                look_back(group.row, own, own)
        return *grads, None, None
