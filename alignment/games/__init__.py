"""Exact preference games: equilibria with certificates, duality gaps, closed-form updates, and a zoo of examples."""

from alignment.games.game import PreferenceGame, Solution, kl_divergence
from alignment.games.panel import MaxMinSolution, PanelGame
from alignment.games.solver import Equilibrium, solve_regularized, solve_unregularized
from alignment.games.updates import (
    OptimisticPolicies,
    extragradient_is_stable,
    extragradient_threshold,
    extragradient_update,
    geometric_mixture,
    hedge_update,
    imaginary_spectrum,
    log_ratio_span,
    master_update,
    nash_md_update,
    omd_threshold,
    optimistic_update,
    proximal_step,
)
from alignment.games.zoo import (
    bradley_terry,
    condorcet_panel,
    conflicting_panel,
    cyclic,
    random_games,
    rock_paper_scissors,
)

__all__ = [
    "Equilibrium",
    "MaxMinSolution",
    "OptimisticPolicies",
    "PanelGame",
    "PreferenceGame",
    "Solution",
    "bradley_terry",
    "condorcet_panel",
    "conflicting_panel",
    "cyclic",
    "extragradient_is_stable",
    "extragradient_threshold",
    "extragradient_update",
    "geometric_mixture",
    "hedge_update",
    "imaginary_spectrum",
    "kl_divergence",
    "log_ratio_span",
    "master_update",
    "nash_md_update",
    "omd_threshold",
    "optimistic_update",
    "proximal_step",
    "random_games",
    "rock_paper_scissors",
    "solve_regularized",
    "solve_unregularized",
]
