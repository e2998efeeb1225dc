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

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``exact_gap`` (the duality gap), ``exact_win_rate`` against the reference by the crowd, by each group, and by
        the group that gives the lowest, ``exact_kl_to_ref`` in nats, ``exact_outside`` (the mass on texts that are no
        answers); each the mean over questions.
        """
        found = self.text.policy_XA(model)
        policy_XA, ref_XA = found.policy_XA, self.text.ref_XA

        def wins(prefs_XAA: Tensor) -> float:
            return float(torch.einsum("xa,xab,xb->x", policy_XA, prefs_XAA, ref_XA).mean())

        of_groups = {name: wins(prefs_XAA) for name, prefs_XAA in self.text.group_preferences.items()}
        kl_X = (torch.xlogy(policy_XA, policy_XA) - torch.xlogy(policy_XA, ref_XA)).sum(-1)
        return {
            "exact_gap": float(self.game.duality_gap(policy_XA).mean()),
            "exact_win_rate": wins(self.text.crowd_preferences),
            **{f"exact_win_rate_{name}": rate for name, rate in of_groups.items()},
            "exact_win_rate_worst": min(of_groups.values()),
            "exact_kl_to_ref": float(kl_X.mean()),
            "exact_outside": float(found.outside_X.mean()),
        }
