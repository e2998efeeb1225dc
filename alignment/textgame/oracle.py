"""An oracle over the answers of the text game, which has an opinion on every other text as well."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignment.errors import UserError


class AnswerOracle:
    """Answers from ``P(y > y' | x)`` over the answers to each question.

    A text that is no answer to the question loses to every answer and ties with every other such text.

    Args:
        prefs_XAA: preferences of every question.
        questions: X texts.
        answers: A texts for each.
    """

    def __init__(self, prefs_XAA: Tensor, questions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
        self.prefs_XAA = prefs_XAA
        self._question = {question: x for x, question in enumerate(questions)}
        self._answer = [{answer: a for a, answer in enumerate(group)} for group in answers]

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``, float64.

        Raises:
            UserError: for a question that is not in the game.
        """
        unknown = [prompt for prompt in prompts if prompt not in self._question]
        if unknown:
            raise UserError(f"text game: expected one of its {len(self._question)} questions, got {unknown[0]!r}")
        x_N = [self._question[prompt] for prompt in prompts]
        left_N, right_N = (
            torch.tensor([self._answer[x].get(text, -1) for x, text in zip(x_N, texts, strict=True)])
            for texts in (left, right)
        )
        known_N = self.prefs_XAA[torch.tensor(x_N), left_N.clamp(min=0), right_N.clamp(min=0)]
        stray_N = 0.5 + 0.5 * ((left_N >= 0).double() - (right_N >= 0).double())
        return torch.where((left_N >= 0) & (right_N >= 0), known_N, stray_N)
