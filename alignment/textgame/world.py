"""The world: questions, all answers to each, how people answer at first, and what a crowd of annotators likes.

An answer is composed of five choices: its tone, how certain it is, how much detail it gives, and how it closes. Every
annotator is transitive: a number for each answer, and a sigmoid of the difference. Five schools of annotators rank the
five tones in rotated orders, so that the crowd's preference goes round in a circle (Condorcet); a minority wants
the opposite of the schools' detail, and caution, which the schools do not mind.

Shape letters: ``X`` questions, ``A`` answers to each, ``S`` annotators.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

VERBS = ("polish", "paint", "repair")
NOUNS = ("boat", "bell", "chair", "clock", "door", "drum", "fence", "lamp", "mirror", "piano")
TONES = ("Gladly,", "Well,", "Indeed,", "Friend,", "Look,")
CERTAINTIES = ("surely", "probably", "perhaps")
DETAILS = ("slowly.", "slowly and gently.", "slowly and gently, twice over.")
CLOSINGS = ("Enjoy!", "Ask again.", "That is all.", "Rest in between.", "Good luck!", "Take care.")

MINORITY_SHARE = 0.12
# How people answer at first: the tone by its distance from the question's favourite, then the other choices.
_TONE_HABIT = (0.5, 0.02, 0.03, 0.15, 0.3)
_CERTAINTY_HABIT = (0.5, 0.3, 0.2)
_DETAIL_HABIT = (0.25, 0.45, 0.3)
_CLOSING_HABIT = (0.3, 0.25, 0.2, 0.1, 0.1, 0.05)
# Utility of a tone, from first to last in an annotator's order, and of one level of detail.
_TONE_RANGE, _DETAIL_STEP = 2.0, 0.3
# Logits per unit of utility: how sure an annotator is.
_SHARPNESS = 4.0


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What is asked, what can be said, and who likes what.

    Attributes:
        questions: X texts.
        answers: X tuples of A texts each.
        habits_XA: the distribution of answers before any preference was learned.
        utilities_SXA: of each annotator.
        weights_S: share of each annotator in the crowd; the last one is the minority.
    """

    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    habits_XA: Tensor
    utilities_SXA: Tensor
    weights_S: Tensor

    def prefs_XAA(self, weights_S: Tensor) -> Tensor:
        """``P(y > y')`` when a question goes to one annotator drawn by these weights, float64."""
        weights_S = weights_S.to(torch.float64) / weights_S.sum()
        size = self.utilities_SXA.shape[-1]
        prefs_XAA = torch.zeros(len(self.questions), size, size, dtype=torch.float64)
        for weight, utility_XA in zip(weights_S, self.utilities_SXA, strict=True):
            if weight > 0:
                logits_XAA = _SHARPNESS * (utility_XA[:, :, None] - utility_XA[:, None, :])
                prefs_XAA += weight * logits_XAA.sigmoid()
        return prefs_XAA

    @property
    def minority(self) -> int:
        """The number of the annotator who is the minority."""
        return len(self.weights_S) - 1

    def prefers(self, annotators_N: Tensor, x: int, first_N: Tensor, second_N: Tensor) -> Tensor:
        """Probabilities [N] that annotators prefer the first of two answers to a question, by their numbers."""
        utilities_SA = self.utilities_SXA[:, x]
        return (_SHARPNESS * (utilities_SA[annotators_N, first_N] - utilities_SA[annotators_N, second_N])).sigmoid()

    def groups(self) -> dict[str, Tensor]:
        """The groups that a panel is made of: name -> weights [S] of their annotators."""
        is_minority_S = torch.arange(len(self.weights_S)) == self.minority
        return {
            "schools": torch.where(is_minority_S, 0.0, self.weights_S),
            "minority": torch.where(is_minority_S, self.weights_S, 0.0),
        }


def build_world() -> World:
    """The world; there is one, and it is the same everywhere."""
    subjects = list(itertools.product(NOUNS, VERBS))
    choices = list(itertools.product(range(len(TONES)), range(3), range(3), range(len(CLOSINGS))))
    tone_A, certainty_A, detail_A, closing_A = torch.tensor(choices).T
    num_tones = len(TONES)
    habits, utilities = [], []
    for x in range(len(subjects)):
        # Which tone people use by habit, and which way round the circle goes, differ from question to question.
        direction = 1 if x // num_tones % 2 == 0 else -1
        distance_A = (tone_A - x) * direction % num_tones
        habits.append(
            _table(_TONE_HABIT)[distance_A]
            * _table(_CERTAINTY_HABIT)[(certainty_A + x) % 3]
            * _table(_DETAIL_HABIT)[detail_A]
            * _table(_CLOSING_HABIT)[(closing_A + x) % len(CLOSINGS)]
        )
        place_SA = (distance_A + torch.arange(num_tones)[:, None]) % num_tones
        schools_SA = _TONE_RANGE * (1.0 - place_SA.double() / (num_tones - 1)) + _DETAIL_STEP * detail_A
        minority_A = certainty_A.double() - detail_A
        utilities.append(torch.cat([schools_SA, minority_A[None]]))
    school = (1.0 - MINORITY_SHARE) / num_tones
    return World(
        questions=tuple(f"How do I {verb} the {noun}?" for noun, verb in subjects),
        answers=tuple(
            tuple(f"{TONES[t]} {CERTAINTIES[c]} {verb} the {noun} {DETAILS[d]} {CLOSINGS[e]}" for t, c, d, e in choices)
            for noun, verb in subjects
        ),
        habits_XA=torch.stack(habits),
        utilities_SXA=torch.stack(utilities, dim=1),
        weights_S=_table([school] * num_tones + [MINORITY_SHARE]),
    )


def _table(values: tuple[float, ...] | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
