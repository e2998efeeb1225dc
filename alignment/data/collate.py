"""Encoded rows -> tensors, and the split into training and evaluation rows.

A sequence is [padding | prompt | completion | padding], so that the completion starts at the same column in the whole
batch. Shape letters: ``B`` prompts, ``G`` completions of a prompt, ``T`` tokens, ``K`` oracles.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from alignment.data.rows import Row
from alignment.data.tokens import EncodedRow
from alignment.errors import UserError
from alignment.shapes import check_shapes
from alignment.types import Completions, Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one step reads.

    Args:
        completions: G of each prompt; G is 0 where all rows are prompts only.
        feedback: of one oracle, or of the panel that scored the rows; preferences where any row was compared, scores
            where any row was scored.
        row_weight_B: multiplies the loss of a row, float32.
        prompt_ids_BT: the prompts alone, padded on the left; here T is the longest prompt.
        prompt_mask_BT: true on prompt tokens.
        rows: what was encoded, for texts and sources.
        mismatched: each prompt with a completion of another one (G = 1), where the rows carry them.
        anchors: stored log-probs [B, G] of frozen policies, by name, zero at padding; empty where none are stored.
        mismatched_anchors: the same [B] of the mismatched completions.
        numbers: of the rows in their data set; empty outside of one.
    """

    completions: Completions
    feedback: Feedback
    row_weight_B: Tensor
    prompt_ids_BT: Tensor
    prompt_mask_BT: Tensor
    rows: tuple[Row, ...]
    mismatched: Completions | None = None
    anchors: Mapping[str, Tensor] = field(default_factory=dict)
    mismatched_anchors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_shapes(prompt_ids_BT=self.prompt_ids_BT, prompt_mask_BT=self.prompt_mask_BT)
        check_shapes(
            row_weight_B=self.row_weight_B,
            valid_BG=self.completions.valid_BG,
            prefs_KBGG=self.feedback.prefs_KBGG,
            scores_KBG=self.feedback.scores_KBG,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same with its tensors on another device."""
        return Batch(
            completions=self.completions.to(device, non_blocking),
            feedback=self.feedback.to(device, non_blocking),
            row_weight_B=self.row_weight_B.to(device, non_blocking=non_blocking),
            prompt_ids_BT=self.prompt_ids_BT.to(device, non_blocking=non_blocking),
            prompt_mask_BT=self.prompt_mask_BT.to(device, non_blocking=non_blocking),
            rows=self.rows,
            mismatched=None if self.mismatched is None else self.mismatched.to(device, non_blocking),
            anchors={name: logps.to(device, non_blocking=non_blocking) for name, logps in self.anchors.items()},
            mismatched_anchors={
                name: logps.to(device, non_blocking=non_blocking) for name, logps in self.mismatched_anchors.items()
            },
            numbers=self.numbers,
        )


def collate(encoded_rows: Sequence[EncodedRow], *, pad_token_id: int) -> Batch:
    """Stack encoded rows.

    Args:
        encoded_rows: at least one; groups of different sizes are padded.
        pad_token_id: fills the gaps; masks decide everything, so it may equal another token.

    Returns:
        Tensors on the CPU; ids int64, masks bool. A padded completion holds its row's prompt, so that no attention mask
        is all zero, and no completion token.
    """
    if not encoded_rows:
        raise UserError("expected at least one row to collate, found none; an empty batch has no shape")
    num_completions = max(len(item.completion_ids) for item in encoded_rows)
    completions, prompt_ids_BT, prompt_mask_BT = _stack_tokens(encoded_rows, pad_token_id)
    mismatched = None
    if any(item.mismatched_ids for item in encoded_rows):
        strangers = [replace(item, completion_ids=(item.mismatched_ids,)) for item in encoded_rows]
        mismatched = _stack_tokens(strangers, pad_token_id)[0]
    return Batch(
        completions=completions,
        feedback=_stack_feedback([item.row for item in encoded_rows], num_completions),
        row_weight_B=torch.tensor([item.row.weight for item in encoded_rows], dtype=torch.float32),
        prompt_ids_BT=prompt_ids_BT,
        prompt_mask_BT=prompt_mask_BT,
        rows=tuple(item.row for item in encoded_rows),
        mismatched=mismatched,
        anchors={name: _stack_logps(encoded_rows, name, num_completions) for name in encoded_rows[0].anchors},
        mismatched_anchors={
            name: torch.tensor([item.mismatched_anchors[name] for item in encoded_rows])
            for name in encoded_rows[0].mismatched_anchors
        },
        numbers=tuple(item.number for item in encoded_rows if item.number is not None),
    )


def _stack_logps(encoded_rows: Sequence[EncodedRow], name: str, num_completions: int) -> Tensor:
    padded = [[*item.anchors[name], *[0.0] * (num_completions - len(item.completion_ids))] for item in encoded_rows]
    return torch.tensor(padded)


def _stack_tokens(encoded_rows: Sequence[EncodedRow], pad_token_id: int) -> tuple[Completions, Tensor, Tensor]:
    """The completions with their prompts, then ids and mask [B, T] of the prompts alone."""
    num_completions = max(len(item.completion_ids) for item in encoded_rows)
    prompt_width = max(len(item.prompt_ids) for item in encoded_rows)
    completion_width = max((len(ids) for item in encoded_rows for ids in item.completion_ids), default=0)
    prompt_ids_BT = torch.full((len(encoded_rows), prompt_width), pad_token_id, dtype=torch.int64)
    prompt_mask_BT = torch.zeros((len(encoded_rows), prompt_width), dtype=torch.bool)
    shape = (len(encoded_rows), num_completions, completion_width)
    completion_ids_BGT = torch.full(shape, pad_token_id, dtype=torch.int64)
    completion_mask_BGT = torch.zeros(shape, dtype=torch.bool)
    valid_BG = torch.zeros(shape[:2], dtype=torch.bool)
    for b, item in enumerate(encoded_rows):
        prompt_ids_BT[b, prompt_width - len(item.prompt_ids) :] = torch.tensor(item.prompt_ids)
        prompt_mask_BT[b, prompt_width - len(item.prompt_ids) :] = True
        valid_BG[b, : len(item.completion_ids)] = True
        for g, ids in enumerate(item.completion_ids):
            completion_ids_BGT[b, g, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            completion_mask_BGT[b, g, : len(ids)] = True
    group_prompt_ids_BGT = prompt_ids_BT[:, None].expand(-1, num_completions, -1)
    group_prompt_mask_BGT = prompt_mask_BT[:, None].expand(-1, num_completions, -1)
    completions = Completions(
        input_ids_BGT=torch.cat([group_prompt_ids_BGT, completion_ids_BGT], dim=-1),
        attention_mask_BGT=torch.cat([group_prompt_mask_BGT, completion_mask_BGT], dim=-1),
        completion_mask_BGT=torch.cat([torch.zeros_like(group_prompt_mask_BGT), completion_mask_BGT], dim=-1),
        valid_BG=valid_BG,
    )
    return completions, prompt_ids_BT, prompt_mask_BT


def split_rows(rows: Sequence[Row], eval_fraction: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Split rows into training and evaluation, so that no prompt stands on both sides.

    The prompts are ordered by a hash of their text and the seed, so the split depends on neither the order of the rows
    nor their number of responses.

    Args:
        rows: at least one.
        eval_fraction: of the different prompts, in [0, 1); 0 gives no evaluation rows.
        seed: another seed, another split.

    Returns:
        Training rows and evaluation rows, each in the order of ``rows``.

    Raises:
        UserError: if the fraction is not in [0, 1), or one side would be empty against the wish.
    """
    if not 0.0 <= eval_fraction < 1.0:
        raise UserError(f"expected eval_fraction in [0, 1), found {eval_fraction}; 0.1 keeps a tenth for evaluation")
    keys = [_prompt_key(row, seed) for row in rows]
    ordered = sorted(set(keys))
    num_eval = round(eval_fraction * len(ordered))
    if num_eval == len(ordered) or (eval_fraction > 0.0 and num_eval == 0):
        raise UserError(
            f"expected enough prompts for both sides of eval_fraction={eval_fraction}, found {len(ordered)}; add rows "
            "or change the fraction"
        )
    held_out = set(ordered[:num_eval])
    train = tuple(row for row, key in zip(rows, keys, strict=True) if key not in held_out)
    evaluation = tuple(row for row, key in zip(rows, keys, strict=True) if key in held_out)
    return train, evaluation


def _stack_feedback(rows: list[Row], num_completions: int) -> Feedback:
    """nan where nobody was asked; the diagonal is 1/2 in any case."""
    num_oracles = _count_oracles(rows)
    prefs_KBGG = torch.full((num_oracles, len(rows), num_completions, num_completions), torch.nan)
    prefs_KBGG.diagonal(dim1=-2, dim2=-1).fill_(0.5)
    scores_KBG = torch.full((num_oracles, len(rows), num_completions), torch.nan)
    for b, row in enumerate(rows):
        for comparison in row.comparisons:
            prefs_KBGG[0, b, comparison.winner, comparison.loser] = comparison.probability
            prefs_KBGG[0, b, comparison.loser, comparison.winner] = 1.0 - comparison.probability
        if row.scores is not None:
            scores_KBG[0, b, : len(row.scores)] = torch.tensor(row.scores)
        for k, judge in enumerate(row.panel):
            scores_G = torch.tensor(judge.scores, dtype=torch.float64)
            size = len(judge.scores)
            scores_KBG[k, b, :size] = scores_G
            # A higher score wins for certain, as in a list of one oracle's scores.
            prefs_KBGG[k, b, :size, :size] = 0.5 + 0.5 * (scores_G[:, None] - scores_G[None]).sign().float()
    return Feedback(
        prefs_KBGG=prefs_KBGG if any(row.comparisons or row.panel for row in rows) else None,
        scores_KBG=scores_KBG if any(row.scores is not None or row.panel for row in rows) else None,
    )


def _count_oracles(rows: list[Row]) -> int:
    """K, the same for all rows: an index must mean one oracle."""
    panels = {tuple(judge.oracle for judge in row.panel): row.source for row in rows if row.panel or row.responses}
    if len(panels) > 1:
        (first, source), (second, other) = list(panels.items())[:2]
        names = [", ".join(panel) or "one unnamed oracle" for panel in (first, second)]
        raise UserError(
            f"{other}: expected the same oracles in all rows, found {names[1]} here and {names[0]} at {source}; score "
            "all rows by all of them"
        )
    return max((len(panel) for panel in panels), default=0) or 1


def _prompt_key(row: Row, seed: int) -> str:
    text = repr((seed, [(turn.role, turn.content) for turn in row.prompt]))
    return hashlib.sha256(text.encode()).hexdigest()
