"""A round of an iterative method: the policy answers, the oracle compares, and the answers become a data set.

The data set holds the sampled tokens themselves: text that is encoded again may come out as other tokens, and then the
samples are no longer those of the policy.

Shape letters: ``B`` prompts, ``G`` completions of a prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from alignment.data import Comparison, EncodedRow, collate, prompt_text
from alignment.oracles import preference_matrix
from alignment.policies import CausalLMPolicy
from alignment.stages import prompts_only
from alignment.types import Completions, Oracle


def sample_round(
    policy: CausalLMPolicy,
    prompts: Sequence[EncodedRow],
    oracle: Oracle,
    *,
    num_completions: int,
    batch_size: int,
    generator: torch.Generator,
) -> tuple[EncodedRow, ...]:
    """Answers of the policy at the start of a round, every pair of a prompt's answers compared.

    With all pairs of i.i.d. answers the regressions of the iterative methods have the minimiser of their theory; a
    selection such as best against worst has another one (Lemma 2 of the method notes).

    Args:
        policy: who answers.
        prompts: encoded rows; a prompt that comes twice is answered twice.
        oracle: who compares; each pair is asked in both orders.
        num_completions: answers to a prompt.
        batch_size: prompts answered at once.
        generator: seeds the answers.

    Returns:
        The rows in the order of the prompts, each with its answers and their comparisons.
    """
    device = policy.model.device
    rows: list[EncodedRow] = []
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        batch = collate(chunk, pad_token_id=int(policy.tokenizer.pad_token_id)).to(device)
        answers = policy.sample(prompts_only(batch), num_completions=num_completions, generator=generator)
        texts = policy.texts(answers)
        prefs_BGG = preference_matrix(oracle, [prompt_text(item.row) for item in chunk], texts)
        first, second = torch.triu_indices(num_completions, num_completions, offset=1).tolist()
        for b, item in enumerate(chunk):
            comparisons = tuple(Comparison(i, j, float(prefs_BGG[b, i, j])) for i, j in zip(first, second, strict=True))
            row = replace(item.row, responses=tuple(texts[b]), comparisons=comparisons)
            rows.append(EncodedRow(prompt_ids=item.prompt_ids, completion_ids=_token_ids(answers, b), row=row))
    return tuple(rows)


def _token_ids(answers: Completions, b: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(ids_T[mask_T].tolist())
        for ids_T, mask_T in zip(answers.input_ids_BGT[b], answers.completion_mask_BGT[b], strict=True)
    )
