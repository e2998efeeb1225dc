"""Asking an oracle, with its answer checked.

Shape letters: ``N`` questions, ``B`` prompts, ``G`` completions of a prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.types import Oracle


def ask(oracle: Oracle, prompts: Sequence[str], left: Sequence[str], right: Sequence[str]) -> Tensor:
    """Probabilities [N] that ``left`` beats ``right``, both presentation orders averaged, float64.

    Averaging makes the answer antisymmetric for any oracle: ``ask(l, r) + ask(r, l) = 1``.

    Raises:
        UserError: if the oracle answers something that is not a probability; the question is quoted.
    """
    forward_N = _checked(oracle, prompts, left, right)
    backward_N = _checked(oracle, prompts, right, left)
    return 0.5 * (forward_N + 1.0 - backward_N)


def preference_matrix(oracle: Oracle, prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> Tensor:
    """``P(y_i > y_j | x)`` among the responses of each prompt, [B, G, G]; diagonal 1/2. Each pair is asked once."""
    num_completions = len(responses[0])
    first, second = torch.triu_indices(num_completions, num_completions, offset=1).tolist()
    prefs_BGG = torch.full((len(prompts), num_completions, num_completions), 0.5, dtype=torch.float64)
    if not first:
        return prefs_BGG
    answers_BN = ask(
        oracle,
        [prompt for prompt in prompts for _ in first],
        [group[i] for group in responses for i in first],
        [group[j] for group in responses for j in second],
    ).reshape(len(prompts), len(first))
    prefs_BGG[:, first, second] = answers_BN
    prefs_BGG[:, second, first] = 1.0 - answers_BN
    return prefs_BGG


def _checked(oracle: Oracle, prompts: Sequence[str], left: Sequence[str], right: Sequence[str]) -> Tensor:
    answers_N = oracle.prefer(list(prompts), list(left), list(right)).to(torch.float64).cpu()
    if list(answers_N.shape) != [len(prompts)]:
        raise UserError(f"oracle: expected {len(prompts)} probabilities, got shape {list(answers_N.shape)}")
    # Written so that nan fails as well.
    wrong_N = ~((answers_N >= 0) & (answers_N <= 1))
    if wrong_N.any():
        n = int(wrong_N.nonzero()[0])
        raise UserError(
            f"oracle: expected a probability in [0, 1], got {answers_N[n].item()} for prompt {prompts[n]!r}, "
            f"left {left[n]!r}, right {right[n]!r}"
        )
    return answers_N
