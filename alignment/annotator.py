"""What the loss reads of a batch of rows, as one run supplies it: its sampling, oracle, anchors and seeds."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from alignment.anchors import AnchorSet
from alignment.arguments import AlignmentArguments
from alignment.batches import blanks_filled
from alignment.data import Batch, EncodedRow
from alignment.policies import CausalLMPolicy
from alignment.seeds import seed_of
from alignment.stages import (
    Annotated,
    Sampling,
    annotate,
    annotate_stored,
    group_wins_of_pairs,
    judge,
    kl_to_ref,
    rollout,
    sample_metrics,
)
from alignment.types import Needs, Oracle

KL_PROMPTS = 64
"""Held-out prompts on which an evaluation estimates the KL to the reference: sampling costs more than scoring."""

KL_LENGTH = "min(max_new_tokens, max_completion_length) (for the KL to the reference)"
"""What sets the longest answer to them where responses come from data; see :func:`alignment.batches.check_context`."""


def prompts_of_kl(
    rows: Sequence[EncodedRow], needs: Needs, args: AlignmentArguments, *, is_base: bool
) -> Sequence[EncodedRow]:
    """Those of the held-out rows that an evaluation has answered for the KL to the reference, in whole batches.

    Args:
        rows: held out.
        needs: of the method; one that reads no reference has none.
        args: where log-probs are stored no model of the reference is left to ask, but for an adapter's base.
        is_base: whether the reference is the base of an adapter.
    """
    if "ref" not in needs.anchor_columns() or (args.store_anchors and not is_base):
        return ()
    together = args.eval_batch_size * args.world_size
    return rows[: -(-KL_PROMPTS // together) * together]


class Annotator:
    """Supplies feedback and anchors to responses: sampled and judged now, or read from the rows.

    Args:
        needs: of the method.
        sampling: how responses are drawn.
        oracle: who judges them; ``None`` suffices where the method reads its responses from the rows.
        anchors: the policies whose log-probs the loss reads, and those that answer.
        make_policy: (module, temperature, top_k=None) -> who samples for a module.
        seed: of the run.
        without: anchors whose log-probs the loss has from elsewhere.
    """

    def __init__(
        self,
        needs: Needs,
        *,
        sampling: Sampling,
        oracle: Oracle | None,
        anchors: AnchorSet,
        make_policy: Callable[..., CausalLMPolicy],
        seed: int,
        without: Collection[str],
    ) -> None:
        self.needs, self.sampling, self.oracle, self.anchors = needs, sampling, oracle, anchors
        self.make_policy, self.seed, self.without = make_policy, seed, without

    def annotate(self, batch: Batch, purpose: str) -> Annotated:
        """All that one gradient reads.

        Args:
            batch: of rows.
            purpose: what the samples are for; for another purpose the same rows are answered anew.
        """
        return self._sampled(batch, purpose) if self.needs.samples_in_batches else self._given(batch)

    def kl_to_ref(self, batch: Batch) -> Tensor:
        """Of each prompt [B], in nats; nan for those that are repeated, or not among the first ``KL_PROMPTS``."""
        kl_B = kl_to_ref(
            batch,
            sampling=self.sampling,
            make_policy=lambda module: self.make_policy(module, 1.0),
            policy_of=self.anchors.model,
            seeds=self._seeds(batch, "kl"),
        )
        is_first_B = torch.tensor([number < KL_PROMPTS for number in batch.numbers], device=kl_B.device)
        return torch.where(is_first_B & (batch.row_weight_B > 0), kl_B, torch.nan)

    def _seeds(self, batch: Batch, purpose: str) -> list[int]:
        """One for each prompt, in whatever batch and process: divided otherwise, or resumed, a run samples alike."""
        return [seed_of(self.seed, purpose, number) for number in batch.numbers]

    def _sampled(self, batch: Batch, purpose: str) -> Annotated:
        assert self.oracle is not None
        rolled = rollout(
            batch,
            needs=self.needs,
            sampling=self.sampling,
            make_policy=partial(self.make_policy, top_k=self.sampling.top_k),
            policy_of=self.anchors.model,
            seeds=self._seeds(batch, purpose),
        )
        annotated = annotate(
            rolled.completions,
            judge(rolled, self.oracle, self.needs),
            self.anchors,
            self.needs,
            weights_BG=rolled.weights_BG,
            row_weight_B=batch.row_weight_B,
            without=self.without,
        )
        # Listed responses are not samples.
        is_sampled = rolled.weights_BG is None
        return replace(annotated, metrics=sample_metrics(rolled.completions, rolled.responses) if is_sampled else {})

    def _given(self, batch: Batch) -> Annotated:
        completions, feedback = batch.completions, blanks_filled(batch, self.needs.feedback)
        if self.needs.feedback == "wins":
            completions, feedback = group_wins_of_pairs(completions, feedback)
        if batch.anchors:
            annotated = annotate_stored(batch, completions, feedback)
        else:
            annotated = annotate(
                completions,
                feedback,
                self.anchors,
                self.needs,
                weights_BG=None,
                row_weight_B=batch.row_weight_B,
                mismatched=batch.mismatched,
            )
        if self.needs.sampler != "prev":
            return annotated
        return replace(annotated, metrics=sample_metrics(completions, [row.responses for row in batch.rows]))
