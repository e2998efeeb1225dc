"""What a step of training holds and computes, as formulas of a model's shape; their sources: docs/scaling.md.

The decoders that they are about have layers of attention and a gated MLP with RMS norms (Llama, Qwen2, Gemma-2).
Letters: ``H`` width of the model, ``A`` of all attention heads together, ``K`` of all key-value heads, ``F`` of the
MLP, ``L`` layers, ``V`` vocabulary; ``R`` rows of ``W`` tokens; ``b`` bytes of a number in which layers compute.
"""

from dataclasses import dataclass

from alignment.head import MAX_LOGITS

# Norms compute in float32, and attention keeps a number of it for each head.
_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder in numbers.

    Attributes:
        layers: L.
        width: H.
        heads: attention heads.
        attention: A.
        key_value: K.
        hidden: F.
        vocabulary: V.
        norms: norms of width H in a layer.
        body: numbers in the matrices of the layers.
        softcap: whether scores of attention are bounded by a hyperbolic tangent.
    """

    layers: int
    width: int
    heads: int
    attention: int
    key_value: int
    hidden: int
    vocabulary: int
    norms: int
    body: int
    softcap: bool = False

    @property
    def is_understood(self) -> bool:
        """Whether the layers have the matrices that the formulas are about, to a tenth."""
        attention = self.width * (2 * self.attention + 2 * self.key_value)
        return abs(self.layers * (attention + 3 * self.width * self.hidden) - self.body) <= 0.1 * self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter's part of a layer's activations.

    Attributes:
        inputs: widths of the inputs of all adapted matrices of the model, summed.
        ranks: of all of them, summed.
        size: bytes of a number in a copy of an input; 0 where the input itself serves all that read it.
    """

    inputs: int
    ranks: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Bytes of a number.

    Attributes:
        compute: b, in what matrices give.
        stream: s, between layers: that of the weights, which autocast does not change.
    """

    compute: int
    stream: int


def layer_bytes(
    shape: Shape, *, rows: int, width: int, numbers: Numbers, attention: str, adapter: Adapter | None = None
) -> int:
    """What one layer keeps for its backward pass.

    After Korthikanti et al. (arXiv 2205.05198, sec. 4.1), for SDPA, gated MLPs and norms in float32.

    Args:
        shape: of the model.
        rows: R.
        width: W.
        numbers: b and s.
        attention: implementation; ``eager`` keeps the scores of all heads, any other a mask at most.
        adapter: where the layer's own weights are frozen.
    """
    size, norms = numbers.compute, shape.norms * shape.width
    heads = 4 * shape.attention * size + _FLOAT * shape.heads
    if adapter is None:
        # Of the normed outputs that matrices read one serves all, unless autocast copies it for each of five.
        read = norms * size if size == numbers.stream else 5 * shape.width * size
        token = norms * (_FLOAT + numbers.stream) + read + heads + 4 * shape.hidden * size
    else:
        copies = adapter.inputs * adapter.size // shape.layers if adapter.size else (norms + shape.hidden) * size
        token = norms * _FLOAT + heads + 3 * shape.hidden * size + copies + adapter.ranks * size // shape.layers
    pair = size
    if attention == "eager":
        pair = shape.heads * (_FLOAT + (size if size < _FLOAT else 0) + (size if shape.softcap else 0))
    return rows * width * token + rows * width * width * pair


def activation_bytes(
    shape: Shape,
    *,
    rows: int,
    width: int,
    numbers: Numbers,
    attention: str,
    checkpointed: bool,
    adapter: Adapter | None = None,
) -> int:
    """What all layers keep for the backward pass; with checkpointing their inputs, and one layer at a time.

    Args:
        shape: of the model.
        rows: R.
        width: W.
        numbers: b and s.
        attention: implementation.
        checkpointed: whether a layer is computed again in the backward pass.
        adapter: where the model's own weights are frozen.
    """
    layer = layer_bytes(shape, rows=rows, width=width, numbers=numbers, attention=attention, adapter=adapter)
    last_norm = rows * width * shape.width * (_FLOAT + (0 if adapter else numbers.stream))
    if checkpointed:
        return shape.layers * rows * width * shape.width * numbers.stream + layer + last_norm
    return shape.layers * layer + last_norm


def cast_bytes(shape: Shape, *, checkpointed: bool, adapter: Adapter | None) -> int:
    """Copies in half precision that autocast makes of matrices in float32.

    It keeps those of trained weights until the forward pass ends; those of frozen ones live as long as their layer.
    """
    return 2 * shape.body // (shape.layers if checkpointed and adapter is not None else 1)


def logit_bytes(shape: Shape, *, tokens: int, size: int, is_whole: bool) -> int:
    """Logits that are held at a time: exponentials and gradient in float32, and the gradient as the head takes it.

    Args:
        shape: of the model.
        tokens: of completions, in a micro-batch.
        size: b.
        is_whole: all at once; else at most ``MAX_LOGITS``.
    """
    count = tokens * shape.vocabulary
    return (count if is_whole else min(count, MAX_LOGITS)) * (_FLOAT + (_FLOAT if size == _FLOAT else _FLOAT + size))


def cache_bytes(shape: Shape, *, sequences: int, length: int, size: int) -> int:
    """Keys and values of sequences while they grow: ``2 L K b`` a token."""
    return 2 * shape.layers * shape.key_value * size * sequences * length


def forward_flops(shape: Shape, *, tokens: float, scored: float, width: float) -> float:
    """A forward pass: ``2 body`` a token, ``4 L A W`` for its attention, ``2 H V`` for each one that is scored.

    Kaplan et al. (arXiv 2001.08361, sec. 2.1), whose causal half of the attention a mask does not save.

    Args:
        shape: of the model.
        tokens: that it reads.
        scored: tokens of which it computes logits.
        width: W, of the rows in which they stand.
    """
    layers = 2 * shape.body + 4 * shape.layers * shape.attention * width
    return tokens * layers + scored * 2 * shape.width * shape.vocabulary
