"""What a language model reaches in the text game, exactly, as figures of a training run.

Shape letters: ``X`` questions, ``A`` answers to each.
"""

import torch
from torch import Tensor, nn

from alignment.textgame.game import TextGame


class ExactFigures:
    """Exact figures of a model; a plain function of its weights, without any sampling.

    Args:
        text: the game.
        tau: of the duality gap; 0 for the unregularised one.
    """

    def __init__(self, text: TextGame, *, tau: float) -> None:
        self.text, self.game = text, text.game(tau=tau)
        self._ref = text.policy_XA(text.ref)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The figures of a model, each the mean over questions.

        ``exact_gap`` (the duality gap) and ``exact_kl_to_ref`` (nats) are those of the probabilities normalised among
        the answers; ``exact_outside`` is the mass on texts that are no answers. ``exact_win_rate`` against the
        reference by the crowd, by each group, and by the group that gives the lowest, counts all texts: one that is no
        answer loses to every answer.
        """
        found = self.text.policy_XA(model)
        policy_XA, ref_XA = found.policy_XA, self._ref.policy_XA
        stray_X, ref_stray_X = found.outside_X, self._ref.outside_X

        def wins(prefs_XAA: Tensor) -> float:
            among_answers_X = torch.einsum("xa,xab,xb->x", policy_XA, prefs_XAA, ref_XA)
            inside_X = 1.0 - stray_X
            rate_X = inside_X * (1.0 - ref_stray_X) * among_answers_X + inside_X * ref_stray_X
            return float((rate_X + 0.5 * stray_X * ref_stray_X).mean())

        of_groups = {name: wins(prefs_XAA) for name, prefs_XAA in self.text.group_preferences.items()}
        kl_X = (torch.xlogy(policy_XA, policy_XA) - torch.xlogy(policy_XA, ref_XA)).sum(-1)
        return {
            "exact_gap": float(self.game.duality_gap(policy_XA).mean()),
            "exact_win_rate": wins(self.text.crowd_preferences),
            **{f"exact_win_rate_{name}": rate for name, rate in of_groups.items()},
            "exact_win_rate_worst": min(of_groups.values()),
            "exact_kl_to_ref": float(kl_X.mean()),
            "exact_outside": float(stray_X.mean()),
        }
