"""Bytes of a device, line by line, while it trains and while it samples."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from alignment.costs import Adapter, Numbers, activation_bytes, cache_bytes, cast_bytes, logit_bytes
from alignment.generation.options import VLLMOptions
from alignment.planning.run import Run

# Numbers of the buffer in which DeepSpeed reduces gradients (reduce_bucket_size), and of gathered weights that ZeRO-3
# keeps for their next use (stage3_max_live_parameters), unless a configuration says otherwise.
_ZERO_BUCKET, _ZERO_LIVE = 5 * 10**8, 10**9
# Sequences that continuous batching holds at once.
_CONTINUOUS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the table.

    Attributes:
        name: what is held.
        formula: how it is reckoned, in the letters of docs/scaling.md.
        training: bytes while the policy trains.
        sampling: bytes while it samples.
    """

    name: str
    formula: str
    training: int = 0
    sampling: int = 0


def memory_lines(run: Run, *, memory: float | None) -> tuple[Line, ...]:
    """What a device holds of a run, without the models of its oracles.

    Args:
        run: of one player.
        memory: bytes of the device, of which vLLM takes a share; ``None`` where nobody knows.
    """
    held = [*_weights(run), *_optimizer(run), *_frozen(run)]
    drawn = list(_sampling(run, memory))
    if run.recipe.samples_in_rounds:
        # Rounds sample with a model that is loaded for that, and with nothing else.
        loaded = Line(name="weights, to sample", formula="bytes of P", sampling=run.outline.loaded_bytes)
        drawn.append(loaded)
    if run.recipe.samples_in_rounds or not run.draws:
        held = [replace(line, sampling=0) for line in held]
    lines = (*held, *_step(run), *(drawn if run.draws else ()))
    return tuple(line for line in lines if line.training or line.sampling)


def _weights(run: Run) -> Iterator[Line]:
    outline, launch = run.outline, run.launch
    divided = " / N" if launch.shares_weights else ""
    weights = run.weight_bytes // (launch.processes if launch.shares_weights else 1)
    yield Line(name="weights", formula=f"bytes of P{divided}", training=weights, sampling=weights)
    # While answers are drawn they are gathered once for all tokens.
    drawing = run.size * outline.parameters
    if launch.sharding == "zero3":
        gathered = run.size * min(outline.parameters, _ZERO_LIVE)
        yield Line(name="weights, gathered", formula="b min(P, 10^9)", training=gathered, sampling=drawing)
    if launch.sharding == "fsdp2":
        formula = "b (embeddings, head, 2 layers)" if launch.reshards else "b P"
        gathered = run.size * outline.largest if launch.reshards else drawing
        yield Line(name="weights, gathered", formula=formula, training=gathered, sampling=drawing)


def _optimizer(run: Run) -> Iterator[Line]:
    """Gradients, and what the optimizer keeps."""
    launch, moments, trained = run.launch, run.moments, run.outline.trained * run.trained_size
    parts = launch.processes if launch.sharding in ("zero2", "zero3", "fsdp2") else 1
    stepped, letters = trained // parts, "t P'" + (" / N" if parts > 1 else "")
    yield Line(name="gradients", formula=letters, training=stepped)
    if launch.sharding == "ddp":
        yield Line(name="gradients, in buckets", formula=letters, training=stepped)
    if launch.is_zero:
        bucket = _ZERO_BUCKET * run.size
        # Stage 3 keeps it.
        idle = bucket if launch.sharding == "zero3" else 0
        yield Line(name="gradients, in buckets", formula="b 5 10^8", training=bucket, sampling=idle)
        # What is stepped is a copy in float32.
        stepped, letters = 4 * run.outline.trained // launch.processes, "4 P' / N"
    count = moments + int(launch.is_zero)
    state = count * stepped
    yield Line(name="optimizer", formula=f"{count} x {letters}", training=state, sampling=state)
    if run.needs.stages > 1:
        start = (1 + moments) * stepped
        yield Line(name="start of the iteration", formula=f"{1 + moments} x {letters}", sampling=start)


def _frozen(run: Run) -> Iterator[Line]:
    """Policies that do not move. What divides the weights of the policy divides models of them too."""
    outline, copies, launch = run.outline, run.copies(), run.launch
    parts, divided = (launch.processes, " / N") if launch.shares_weights else (1, "")
    models = copies.wholes * outline.loaded_bytes // parts
    yield Line(name="frozen models", formula=f"{copies.wholes} as loaded{divided}", training=models, sampling=models)
    adapter = outline.trained * outline.trained_size
    held = copies.adapters * adapter
    yield Line(name="frozen adapters", formula=f"{copies.adapters} as loaded", training=held, sampling=held)
    if run.recipe.average is not None and not run.recipe.samples_in_rounds:
        yield Line(name="average of weights", formula="t P'", training=adapter, sampling=adapter)


def _step(run: Run) -> Iterator[Line]:
    """What a step adds, up to the end of its forward pass."""
    batch, outline = run.batch(), run.outline
    activations = activation_bytes(
        outline.shape,
        rows=batch.rows,
        width=batch.width,
        numbers=Numbers(compute=run.size, stream=4 if run.is_autocast else run.size),
        attention=outline.attention,
        checkpointed=run.is_checkpointed,
        adapter=_adapter(run),
    )
    if run.is_autocast and not run.recipe.policy.load_in_4bit:
        cast = cast_bytes(outline.shape, checkpointed=run.is_checkpointed, adapter=_adapter(run))
        yield Line(name="matrices, cast", formula="2 bytes a number", training=cast)
    kept = "; their inputs, and one layer" if run.is_checkpointed else ""
    yield Line(name="activations", formula=f"{batch.rows} rows of {batch.width:,} tokens{kept}", training=activations)
    is_whole = run.recipe.scoring.logits == "whole"
    bound = "" if is_whole else ", at most 2^25 logits"
    yield Line(
        name="logits",
        formula=f"of {batch.scored:,} tokens{bound}",
        training=logit_bytes(outline.shape, tokens=batch.scored, size=run.size, is_whole=is_whole),
    )


def _adapter(run: Run) -> Adapter | None:
    outline = run.outline
    if not outline.is_adapter:
        return None
    # peft casts inputs to the precision of the adapter, and autocast casts them back, each time anew.
    is_cast = run.size != outline.trained_size
    size = (run.size if run.is_mixed else outline.trained_size) if is_cast or outline.has_dropout else 0
    if outline.has_dropout:
        # A byte of its mask.
        size += 1
    return Adapter(inputs=outline.adapted, ranks=outline.ranks, size=size)


def _sampling(run: Run, memory: float | None) -> Iterator[Line]:
    """Keys and values of the answers that are drawn at a time."""
    recipe, needs, sampling, lengths = run.recipe, run.needs, run.recipe.sampling, run.lengths
    if sampling.engine == "vllm":
        options = sampling.vllm or VLLMOptions()
        if options.mode == "colocate" and memory is not None:
            share = int(options.gpu_memory_utilization * memory)
            kept = 0 if options.sleep or recipe.samples_in_rounds else share
            yield Line(name="vLLM", formula="its share of the device", training=kept, sampling=share)
    if sampling.engine != "transformers":
        return
    prompts = run.args.per_device_eval_batch_size if recipe.samples_in_rounds else run.args.per_device_train_batch_size
    sequences = prompts * run.answers_at_once
    if sampling.continuous_batching:
        sequences = min(sequences, _CONTINUOUS)
    # A mixture asks two models at every token.
    models = 2 if "mixture" in (needs.sampler, needs.opponent) else 1
    length = lengths.prompt + sampling.max_new_tokens
    yield Line(
        name="keys and values",
        formula=f"{models * sequences} x {length:,} tokens",
        sampling=models * cache_bytes(run.outline.shape, sequences=sequences, length=length, size=run.size),
    )
