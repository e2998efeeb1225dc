"""From the ``data:`` block of a recipe to training and evaluation rows, with an account of what was left out.

The order: read each source; filter; remove duplicates over all sources; split off or read the evaluation rows;
decontaminate the training rows against them; mix by weight. Duplicates go before the split, so that no copy is held
out; the mixture comes last, so that rows which it repeats are repeated in training only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.cache import cache_folder
from alignment.config import DataSource, RowsSpec
from alignment.data import (
    EncodedRow,
    EncodeResult,
    Kept,
    ReadResult,
    Row,
    content_key,
    drop_contaminated,
    drop_duplicates,
    encode_rows,
    encode_rows_cached,
    filter_rows,
    mix_rows,
    read_rows,
    split_rows,
)
from alignment.data.rows import describe_skipped
from alignment.errors import UserError
from alignment.files import write_json
from alignment.progress import Announce
from alignment.textgame import is_address, read_address


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """The rows of a run.

    Attributes:
        train: what is trained on.
        evaluation: held out; empty if the recipe wants none.
        report: stage -> reason -> the sources of what was left out there, for a file beside the run.
    """

    train: tuple[Row, ...]
    evaluation: tuple[Row, ...]
    report: Mapping[str, Mapping[str, tuple[str, ...]]]


def write_report(data: PreparedData, folder: Path) -> None:
    """Name every row that was left out, in ``data_report.json``."""
    write_json(folder / "data_report.json", data.report)


def read_source(source: DataSource) -> ReadResult:
    """Read what a source of a recipe names: its keys are the options of :func:`alignment.data.read_rows`."""
    if not any(is_address(path) for path in source.path):
        return read_rows(source.path, **source.model_dump(exclude={"path", "weight"}))
    # A resolved recipe says defaults, too.
    unread = sorted(source.model_dump(exclude_defaults=True).keys() - {"path", "weight", "limit"})
    if len(source.path) > 1 or unread:
        found = f"{len(source.path)} paths" if len(source.path) > 1 else f"also {', '.join(unread)}"
        raise UserError(f"data: expected {source.path[0]} by itself, with limit or weight at most, got {found}")
    return read_address(source.path[0], source.limit)


def prepare_data(spec: RowsSpec, *, seed: int, announce: Announce) -> PreparedData:
    """Read, filter, deduplicate, split, decontaminate and mix.

    Args:
        spec: the block of a recipe.
        seed: of the split and the mixture.
        announce: is told in a line what each step left out.

    Raises:
        UserError: if a source cannot be read, holds no feedback where some is needed, or nothing is left; and if
            training and evaluation rows share a prompt that nothing removes.
    """
    report: dict[str, Mapping[str, tuple[str, ...]]] = {}

    def account(stage: str, kept: Kept) -> tuple[Row, ...]:
        report[stage] = kept.removed
        announce(f"{stage}: {describe_skipped(kept.removed, verb='removed')}")
        if not kept.rows:
            raise UserError(f"data.{stage}: expected rows to stay, found none: {describe_skipped(kept.removed)}")
        return kept.rows

    groups = [_read(spec, source, announce, report) for source in spec.sources]
    rows = tuple(row for group in groups for row in group)
    # A row keeps its source through the steps by identity.
    origin = {id(row): number for number, group in enumerate(groups) for row in group}
    if spec.filters is not None:
        rows = account("filters", filter_rows(rows, **spec.filters.model_dump()))
    if spec.duplicates is not None:
        similarity = spec.duplicates.similarity if spec.duplicates.remove == "near" else None
        rows = account("duplicates", drop_duplicates(rows, similarity=similarity))
    train, evaluation = _split(spec, rows, seed, announce, report)
    if spec.decontaminate is not None:
        rule = spec.decontaminate
        against = [row for source in rule.against for row in read_source(source).rows]
        train = account(
            "decontaminate",
            drop_contaminated(train, (*evaluation, *against), ngram=rule.ngram, overlap=rule.overlap),
        )
    elif spec.evaluation is not None and not is_address(spec.evaluation.path[0]):
        # The text game has no other questions than those that it is played with.
        _refuse_shared_prompts(train, evaluation)
    weights = [source.weight for source in spec.sources if source.weight is not None]
    if weights:
        parts = [[row for row in train if origin[id(row)] == number] for number in range(len(groups))]
        train = mix_rows(parts, weights, stop=spec.mixing.stop, seed=seed)
        announce(_describe_mixture(parts, train, origin, spec))
    return PreparedData(train=train, evaluation=evaluation, report=report)


def _read(
    spec: RowsSpec, source: DataSource, announce: Announce, report: dict[str, Mapping[str, tuple[str, ...]]]
) -> tuple[Row, ...]:
    result = read_source(source)
    name = ", ".join(source.path)
    announce(f"data: {f'{name}: ' if len(spec.sources) > 1 else ''}{result.summary()}")
    report[f"read {name}"] = result.skipped
    refusal = spec.refusal(dict.fromkeys(result.formats))
    if refusal is not None:
        raise UserError(f"{name}: {refusal}")
    return result.rows


def _split(
    spec: RowsSpec,
    rows: tuple[Row, ...],
    seed: int,
    announce: Announce,
    report: dict[str, Mapping[str, tuple[str, ...]]],
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    if spec.evaluation is None:
        return split_rows(rows, spec.eval_fraction, seed) if spec.eval_fraction > 0 else (rows, ())
    result = read_source(spec.evaluation)
    announce(f"evaluation: {result.summary()}")
    report["read evaluation"] = result.skipped
    held_out = result.rows
    if spec.filters is not None:
        kept = filter_rows(held_out, **spec.filters.model_dump())
        report["filters of evaluation"] = kept.removed
        announce(f"filters of evaluation: {describe_skipped(kept.removed, verb='removed')}")
        held_out = kept.rows
    return rows, held_out


def encode_as_asked(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: RowsSpec
) -> tuple[EncodeResult, bool]:
    """Token ids within the limits of a data block, and whether its cache had them.

    Raises:
        UserError: as :func:`alignment.data.encode_rows`.
    """
    lengths = {"max_prompt_length": spec.max_prompt_length, "max_completion_length": spec.max_completion_length}
    if not spec.cache:
        return encode_rows(rows, tokenizer, **lengths), False
    return encode_rows_cached(rows, tokenizer, **lengths, folder=cache_folder("tokens"))


def encode_aloud(
    name: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, spec: RowsSpec, announce: Announce
) -> tuple[EncodedRow, ...]:
    """Token ids as :func:`encode_as_asked` gives them, and a line about them; nothing of no rows."""
    if not rows:
        return ()
    result, is_cached = encode_as_asked(rows, tokenizer, spec)
    announce(f"{name}: {result.summary()}{' (from the cache)' if is_cached else ''}")
    return result.rows


def shared_prompts(train: tuple[Row, ...], evaluation: tuple[Row, ...]) -> tuple[str, ...]:
    """Sources of training rows whose prompt, up to case and white space, an evaluation row has, with that row's."""
    held_out = {content_key(row)[0]: row.source for row in evaluation}
    return tuple(f"{row.source} = {held_out[prompt]}" for row in train if (prompt := content_key(row)[0]) in held_out)


def _refuse_shared_prompts(train: tuple[Row, ...], evaluation: tuple[Row, ...]) -> None:
    shared = shared_prompts(train, evaluation)
    if shared:
        raise UserError(
            f"data.evaluation: expected prompts that are not trained on, found {len(shared)} that are, first "
            f"{shared[0]}; set data.decontaminate={{}} to leave such rows out of the training data"
        )


def _describe_mixture(parts: list[list[Row]], train: tuple[Row, ...], origin: Mapping[int, int], spec: RowsSpec) -> str:
    drawn: list[Any] = [[id(row) for row in train if origin[id(row)] == number] for number in range(len(parts))]
    shares = [
        f"{', '.join(source.path)} {len(ids):,} rows ({len(set(ids)):,} of {len(part):,} different)"
        for source, part, ids in zip(spec.sources, parts, drawn, strict=True)
    ]
    return f"mixture ({spec.mixing.stop}): {len(train):,} rows; {'; '.join(shares)}"
