"""What a trainer feeds on: rows in the form in which a method reads them, in order, collated."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from accelerate.state import GradientState
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from alignment.arguments import AlignmentArguments
from alignment.data import Batch, EncodedRow, Row, collate, encode_rows, unpair_rows, with_mismatched
from alignment.errors import UserError
from alignment.ranks import Ranks
from alignment.types import Feedback, FeedbackKind, Needs


def rows_to_encode(rows: Sequence[Row], needs: Needs, args: AlignmentArguments) -> tuple[Row, ...]:
    """The rows in the form in which a method reads them.

    Whole groups, or single labelled responses, where the data hold the responses. Prompts alone where the policy
    samples, with the response set where it is enumerated: what the file holds besides is not what the policy says.
    """
    if not needs.samples_in_batches:
        return unpair_rows(rows) if needs.mismatched else tuple(rows)
    responses = tuple(args.responses or ()) if args.engine == "enumerate" else ()
    return tuple(Row(prompt=row.prompt, responses=responses, weight=row.weight, source=row.source) for row in rows)


def encode_for(
    needs: Needs,
    rows: Sequence[Row] | Sequence[EncodedRow],
    tokenizer: PreTrainedTokenizerBase,
    args: AlignmentArguments,
) -> tuple[EncodedRow, ...]:
    """Rows as a method reads them; those that are encoded stay as they are.

    Raises:
        UserError: if some are encoded and others not, or something else is among them.
    """
    encoded = tuple(row for row in rows if isinstance(row, EncodedRow))
    if len(encoded) < len(rows):
        plain = tuple(row for row in rows if isinstance(row, Row))
        if len(plain) < len(rows):
            foreign = next(row for row in rows if not isinstance(row, Row))
            raise UserError(
                f"expected rows, all encoded or none, found a {type(foreign).__name__} among {len(rows)}; "
                "alignment.data.read_rows(DATA).rows makes rows of files, data sets and lists of dicts"
            )
        encoded = encode_rows(
            rows_to_encode(plain, needs, args),
            tokenizer,
            max_prompt_length=args.max_prompt_length,
            max_completion_length=args.max_new_tokens if needs.samples_in_batches else args.max_completion_length,
        ).rows
    return with_mismatched(encoded) if needs.mismatched else encoded


def check_feedback(rows: Sequence[EncodedRow], needs: Needs) -> None:
    """A data set read by its feedback must hold some; single rows without it count for nothing."""
    if needs.samples_in_batches:
        return
    what, found, advice = (
        (
            "scores",
            any(item.row.scores is not None or item.row.panel for item in rows),
            "rows of the formats scored and ranked have them",
        )
        if needs.feedback == "scores"
        else (
            "comparisons",
            any(item.row.comparisons or item.row.panel for item in rows),
            "pairs, labelled, ranked and scored rows have them, and kto reads unpaired ones",
        )
    )
    if not found:
        raise UserError(f"the method learns from {what}, and none of the {len(rows)} training rows has any; {advice}")


def counted_once(batch: Batch, state: GradientState, *, num_rows: int, ranks: Ranks) -> Batch:
    """A batch in which rows weigh nothing that Accelerate repeats, where an epoch ends between two processes.

    Args:
        batch: of a process, the latest of a data loader that leaves no row out.
        state: Accelerate's, which knows whether it was the last one; its own count of what is left is gone where a
            resumed epoch skips batches.
        num_rows: of the data set.
        ranks: the processes that share it.
    """
    left = num_rows % (len(batch.rows) * ranks.count)
    if ranks.count == 1 or not state.end_of_dataloader or not left:
        return batch
    own = left - ranks.index * len(batch.rows)
    is_own_B = torch.arange(len(batch.rows), device=batch.row_weight_B.device) < own
    return replace(batch, row_weight_B=batch.row_weight_B * is_own_B)


def num_positions(config: PreTrainedConfig) -> int | None:
    """The longest sequence of a model; ``None`` where no position is the last, without position embeddings."""
    try:
        return int(config.get_text_config().max_position_embeddings)
    except AttributeError:
        return None


WIN_RATE_LENGTH = "win_rate_max_new_tokens (in a recipe evaluation.max_new_tokens)"
"""What sets the longest answer to a held-out prompt; see :func:`check_context`."""


def check_context(
    rows: Sequence[EncodedRow], limit: int | None, *, max_new_tokens: int, named: str = "max_new_tokens"
) -> None:
    """An answer must fit behind every prompt: past its last position a model breaks, or says what nobody trained.

    Args:
        rows: whose prompts are answered.
        limit: positions of the model; ``None`` for any number.
        max_new_tokens: longest answer.
        named: what sets it.

    Raises:
        UserError: naming the longest prompt.
    """
    if limit is None:
        return
    too_long = [item for item in rows if len(item.prompt_ids) + max_new_tokens > limit]
    if too_long:
        longest = max(too_long, key=lambda item: len(item.prompt_ids))
        raise UserError(
            f"expected room for {named} = {max_new_tokens} behind every prompt in the {limit} positions of the "
            f"model; {len(too_long)} of {len(rows)} prompts leave none, the longest has {len(longest.prompt_ids)} "
            f"tokens ({longest.row.source}); lower {named}, or max_prompt_length, which skips and counts them"
        )


class EncodedRows(Dataset[EncodedRow]):
    """Encoded rows as a map-style data set, in which each knows its number."""

    def __init__(self, rows: Sequence[EncodedRow]) -> None:
        self.rows: Sequence[EncodedRow] = tuple(replace(item, number=number) for number, item in enumerate(rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedRow:
        return self.rows[index]

    @property
    def has_responses(self) -> bool:
        """Whether any row is more than a prompt."""
        return any(item.completion_ids for item in self.rows)

    def digest(self) -> str:
        """A hash of what is trained on: tokens, feedback, weights."""
        digest = hashlib.sha256()
        for item in self.rows:
            for ids in (item.prompt_ids, *item.completion_ids):
                digest.update(array("q", (len(ids), *ids)).tobytes())
            row = item.row
            digest.update(repr((row.comparisons, row.scores, row.panel, row.weight)).encode())
        return digest.hexdigest()[:16]

    def count_tokens(self) -> tuple[int, int]:
        """Tokens with each prompt once for all of its completions, and once for each of them."""
        prompts = sum(len(item.prompt_ids) for item in self.rows)
        repeated = sum(len(item.prompt_ids) * len(item.completion_ids) for item in self.rows)
        completions = sum(len(ids) for item in self.rows for ids in item.completion_ids)
        return prompts + completions, repeated + completions


class Collator:
    """Wraps the batch in a dictionary, which is what Trainer and Accelerate pass around."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, Batch]:
        return {"batch": collate(rows, pad_token_id=self.pad_token_id)}


class StagedSampler(Sampler[int]):
    """Shuffled indices in chunks of one effective batch; each chunk comes once for every step of an iteration.

    Rows that do not fill the last chunk of an epoch are left for the next shuffle.

    Args:
        dataset: its length counts.
        chunk: rows of an effective batch, over accumulation and ranks.
        repeats: optimizer steps of an iteration, which share their prompts.
        seed: of the shuffle.
        epoch: gives the current epoch, so that a resumed run shuffles alike.

    Raises:
        UserError: if there are fewer rows than one effective batch.
    """

    def __init__(
        self, dataset: Sequence[EncodedRow], *, chunk: int, repeats: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        if len(dataset) < chunk:
            raise UserError(f"expected at least {chunk} prompts, one effective batch, got {len(dataset)}")
        self.num_rows, self.chunk, self.repeats, self.seed, self.epoch = len(dataset), chunk, repeats, seed, epoch

    def __len__(self) -> int:
        return self.num_rows // self.chunk * self.chunk * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        order = torch.randperm(self.num_rows, generator=generator).tolist()
        for start in range(0, self.num_rows - self.chunk + 1, self.chunk):
            for _ in range(self.repeats):
                yield from order[start : start + self.chunk]


def blanks_filled(batch: Batch, kind: FeedbackKind) -> Feedback:
    """The batch's feedback, ``nan`` (not asked) where none of its rows has any, as in a small batch may happen."""
    feedback = batch.feedback
    nothing_BG = torch.full(batch.completions.valid_BG.shape, torch.nan, device=batch.completions.valid_BG.device)
    if kind == "scores" and feedback.scores_KBG is None:
        return replace(feedback, scores_KBG=nothing_BG[None])
    if kind != "scores" and feedback.prefs_KBGG is None:
        return replace(feedback, prefs_KBGG=nothing_BG[None, :, :, None].repeat(1, 1, 1, nothing_BG.shape[1]))
    return feedback
