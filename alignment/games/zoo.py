"""Games with known properties: cycles, random games, transitive games, and panels whose members disagree.

Shapes: ``K`` oracles, ``X`` contexts, ``A`` actions.
"""

import numpy as np
import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.games.game import PreferenceGame
from alignment.games.panel import PanelGame


def cyclic(num_actions: int = 3, *, strength: float = 1.0, ref_XA: Tensor | None = None, tau: float) -> PreferenceGame:
    """Every action beats the next ``(n - 1) // 2`` around a circle with probability ``1/2 + strength/2``.

    With an even number of actions opposite ones tie. With a uniform reference the equilibrium is uniform for every
    ``tau``.

    Args:
        num_actions: ``n``.
        strength: in [0, 1]; 1 is a 0/1 tournament.
        ref_XA: the reference of the single context; uniform if not given.
        tau: the strength of the KL penalty.
    """
    _check_count("num_actions", num_actions)
    if not 0.0 <= strength <= 1.0:
        raise UserError(f"strength: expected a number in [0, 1], got {strength}")
    ahead_AA = (torch.arange(num_actions)[None, :] - torch.arange(num_actions)[:, None]) % num_actions
    reach = (num_actions - 1) // 2
    wins_AA = ((ahead_AA >= 1) & (ahead_AA <= reach)).to(torch.float64)
    prefs_XAA = (0.5 + 0.5 * strength * (wins_AA - wins_AA.T))[None]
    return PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=_uniform(1, num_actions) if ref_XA is None else ref_XA, tau=tau)


def rock_paper_scissors(*, tau: float = 0.05) -> PreferenceGame:
    """The 0/1 cycle of three actions with the reference ``softmax(.5, 0, -.2)``.

    At the default ``tau`` the equilibrium is (.343742, .309731, .346527), one-step mirror descent is locally stable for
    ``a < .0585`` and extragradient for ``a < .1935``.
    """
    return cyclic(3, ref_XA=torch.tensor([[0.5, 0.0, -0.2]], dtype=torch.float64).softmax(-1), tau=tau)


def random_games(num_games: int = 10, *, num_actions: int = 10, tau: float, seed: int) -> PreferenceGame:
    """Independent games in the manner of the simulations of 2503.08942, one per context.

    One stream of `numpy.random.default_rng(seed)`: for each row of the strictly lower triangle, from the second row
    down, its entries in all games, uniform in [0, 1] (the upper triangle is their complement); then the logits of all
    references, standard normal.
    """
    _check_count("num_games", num_games)
    _check_count("num_actions", num_actions)
    generator = np.random.default_rng(seed)
    prefs_XAA = np.full((num_games, num_actions, num_actions), 0.5)
    for row in range(1, num_actions):
        lower = generator.uniform(size=(num_games, row))
        prefs_XAA[:, row, :row] = lower
        prefs_XAA[:, :row, row] = 1.0 - lower
    logits_XA = torch.from_numpy(generator.normal(size=(num_games, num_actions)))
    return PreferenceGame(prefs_XAA=torch.from_numpy(prefs_XAA), ref_XA=logits_XA.softmax(-1), tau=tau)


def bradley_terry(rewards_XA: Tensor, ref_XA: Tensor, *, tau: float) -> PreferenceGame:
    """The transitive game ``P(y > y') = sigmoid(r(y) - r(y'))``."""
    return PreferenceGame(prefs_XAA=_bradley_terry_preferences(rewards_XA), ref_XA=ref_XA, tau=tau)


def condorcet_panel(
    *, num_actions: int = 3, num_contexts: int = 1, sharpness: float = 2.0, seed: int = 0, tau: float
) -> PanelGame:
    """As many annotators as actions, each transitive, whose majority goes around in a circle.

    Annotator ``k`` is Bradley-Terry with rewards falling by ``sharpness`` along a ranking that starts ``k`` places
    later than the first annotator's. An action is ahead of its successor in all rankings but one, hence the cycle. The
    names of the actions are shuffled in every context; the reference is uniform.
    """
    _check_count("num_contexts", num_contexts)
    if num_actions < 3:
        raise UserError(f"num_actions: expected at least 3 for a cycle, got {num_actions}")
    if not sharpness > 0.0:
        raise UserError(f"sharpness: expected a positive number, got {sharpness}")
    generator = np.random.default_rng(seed)
    place_XA = torch.from_numpy(np.stack([generator.permutation(num_actions) for _ in range(num_contexts)]))
    rank_KXA = (place_XA[None] - torch.arange(num_actions)[:, None, None]) % num_actions
    return PanelGame(
        prefs_KXAA=_bradley_terry_preferences(-sharpness * rank_KXA.to(torch.float64)),
        ref_XA=_uniform(num_contexts, num_actions),
        tau=tau,
    )


def conflicting_panel(
    *, num_actions: int = 2, num_contexts: int = 1, num_majority: int = 10, num_minority: int = 1, tau: float
) -> PanelGame:
    """A majority that likes the first action best and the last least, and a minority that wants the reverse.

    ``P_k(y > y') = 1/2 + (r_k(y) - r_k(y'))/2`` with rewards falling evenly from 1 to 0, respectively rising. The
    average oracle follows the majority; maxmin treats the two groups alike, however many annotators each has. The
    reference is uniform.
    """
    _check_count("num_contexts", num_contexts)
    _check_count("num_majority", num_majority)
    _check_count("num_minority", num_minority)
    if num_actions < 2:
        raise UserError(f"num_actions: expected at least 2 for a conflict, got {num_actions}")
    falling_A = torch.linspace(1.0, 0.0, num_actions, dtype=torch.float64)
    rewards_KA = torch.stack([falling_A] * num_majority + [1.0 - falling_A] * num_minority)
    prefs_KAA = 0.5 + 0.5 * (rewards_KA[:, :, None] - rewards_KA[:, None, :])
    return PanelGame(
        prefs_KXAA=prefs_KAA[:, None].repeat(1, num_contexts, 1, 1), ref_XA=_uniform(num_contexts, num_actions), tau=tau
    )


def _bradley_terry_preferences(rewards: Tensor) -> Tensor:
    rewards = rewards.to(torch.float64)
    return (rewards[..., :, None] - rewards[..., None, :]).sigmoid()


def _uniform(num_contexts: int, num_actions: int) -> Tensor:
    return torch.full((num_contexts, num_actions), 1.0 / num_actions, dtype=torch.float64)


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise UserError(f"{name}: expected at least 1, got {count}")
