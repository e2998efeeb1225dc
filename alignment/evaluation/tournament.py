"""A round robin of policies on shared prompts: who beats whom, who is best, and how sure that is.

Shape letters: ``K`` policies, ``E`` pairs. NumPy float64.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from alignment.errors import UserError
from alignment.evaluation.bradley_terry import fit_bradley_terry
from alignment.evaluation.cycles import Diagnosis, diagnose_matrix
from alignment.evaluation.intervals import LEVEL, Array, Estimate, holm, p_value
from alignment.evaluation.transitivity import incidence
from alignment.evaluation.win_matrix import Ranked, WinMatrix, rank_intervals

ELO = 400.0 / math.log(10.0)
"""Elo points of a logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a policy is worth in the set.

    Attributes:
        name: of the policy.
        ranked: its mean win rate and the interval of its rank.
        elo: Bradley-Terry strength in Elo points, mean 0 over the set; ``None`` where some strength is infinite.
        weight: in the maximal lottery.
        skill: P(it beats the lottery) - 1/2.
        exploitability: of this policy, ``max_j P(j beats it) - 1/2``, from 0 to 1/2.
    """

    name: str
    ranked: Ranked
    elo: Estimate | None
    weight: float
    skill: float
    exploitability: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Two policies.

    Attributes:
        names: of the two.
        win_rate: of the first against the second, an interval of its own.
        p_value: of "neither is better", two-sided.
        adjusted: Holm's, over all pairs: below .05 anywhere is wrong with 5 % at most.
    """

    names: tuple[str, str]
    win_rate: Estimate
    p_value: float
    adjusted: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tournament:
    """The analysis of a round robin.

    Attributes:
        table: the matrix with simultaneous ends, circles, fit, lottery, gain.
        standings: of each policy, in the order of the matrix.
        matches: of each pair.
        lottery_exploitability: of the maximal lottery as it was found here, by any policy of the set. In the estimated
            matrix it is 0 by construction; the upper end allows for the error of the matrix.
    """

    table: Diagnosis
    standings: tuple[Standing, ...]
    matches: tuple[Match, ...]
    lottery_exploitability: Estimate


def analyse_tournament(matrix: WinMatrix) -> Tournament:
    """Standings, matches and solution concepts of a complete win matrix.

    Args:
        matrix: of :func:`alignment.evaluation.win_matrix.judged_matrix`, every pair compared.

    Raises:
        UserError: if a pair was not.
    """
    missing = np.argwhere(np.isnan(matrix.wins_KK))
    if len(missing):
        first, second = (matrix.names[k] for k in missing[0])
        raise UserError(
            f"round robin: expected verdicts on every pair, found none on {len(missing) // 2}, first on {first!r} and "
            f"{second!r}; have them judged, or leave one out"
        )
    table = diagnose_matrix(matrix)
    lottery = table.lottery
    assert lottery is not None
    elo = _elo(matrix)
    num = 0 if matrix.is_exact else int(matrix.num_prompts)

    def worst_case(table_K: Array) -> float:
        return float(table_K.max()) - 0.5

    standings = tuple(
        Standing(
            name=name,
            ranked=ranked,
            elo=None if elo is None else elo[k],
            weight=float(lottery.weights_K[k]),
            skill=float(lottery.skill_K[k]),
            exploitability=Estimate(
                mean=worst_case(matrix.wins_KK[:, k]),
                low=worst_case(table.low_KK[:, k]),
                high=worst_case(table.high_KK[:, k]),
                num_prompts=num,
            ),
        )
        for k, (name, ranked) in enumerate(zip(matrix.names, rank_intervals(matrix), strict=True))
    )
    return Tournament(
        table=table,
        standings=standings,
        matches=_matches(matrix),
        # The cells hold all at once, so they bound the lottery's losses although the same cells chose it.
        lottery_exploitability=Estimate(
            mean=max(lottery.exploitability, 0.0),
            low=max(worst_case(table.low_KK @ lottery.weights_K), 0.0),
            high=worst_case(table.high_KK @ lottery.weights_K),
            num_prompts=num,
        ),
    )


def _matches(matrix: WinMatrix) -> tuple[Match, ...]:
    low_KK, high_KK = matrix.cell_ends(LEVEL)
    values = [
        p_value(2.0 * float(rate) - 1.0, 4.0 * float(variance), float(count))
        for rate, variance, count in zip(matrix.wins_E, matrix.variance_E, matrix.prompts_E, strict=True)
    ]
    return tuple(
        Match(
            names=(matrix.names[i], matrix.names[j]),
            win_rate=Estimate(
                mean=float(matrix.wins_KK[i, j]),
                low=float(low_KK[i, j]),
                high=float(high_KK[i, j]),
                num_prompts=0 if matrix.is_exact else int(count),
            ),
            p_value=value,
            adjusted=float(adjusted),
        )
        for i, j, count, value, adjusted in zip(
            matrix.first_E, matrix.second_E, matrix.prompts_E, values, holm(values), strict=True
        )
    )


def _elo(matrix: WinMatrix) -> list[Estimate] | None:
    """Strengths with the sandwich error: to first order ``ds = (X' n V X)^+ X' n dP`` (2403.04132, clustered here)."""
    weights_E = np.ones(len(matrix.wins_E)) if matrix.is_exact else matrix.counts_E
    fit = fit_bradley_terry(matrix.fill(weights_E * matrix.wins_E, 0.0, weights_E * (1.0 - matrix.wins_E)))
    if not fit.is_finite:
        return None
    probability_E = fit.probability_KK[matrix.first_E, matrix.second_E]
    design_EK = incidence(matrix.first_E, matrix.second_E, len(matrix.names))
    information_KK = (design_EK.T * (weights_E * probability_E * (1.0 - probability_E))) @ design_EK
    bread_KE = np.linalg.pinv(information_KK) @ (design_EK.T * weights_E)
    deviation_K = np.sqrt(np.einsum("ke,ef,kf->k", bread_KE, matrix.covariance_EE, bread_KE).clip(min=0.0))
    if matrix.is_exact:
        reach_K = np.zeros_like(deviation_K)
    elif matrix.num_prompts < 2:
        # One prompt says nothing about others.
        reach_K = np.full_like(deviation_K, np.inf)
    else:
        reach_K = deviation_K * stdtrit(matrix.num_prompts - 1.0, 1.0 - LEVEL / 2.0)
    return [
        Estimate(
            mean=float(ELO * strength),
            low=float(ELO * (strength - reach)),
            high=float(ELO * (strength + reach)),
            num_prompts=0 if matrix.is_exact else int(matrix.num_prompts),
        )
        for strength, reach in zip(fit.strength_K, reach_K, strict=True)
    ]
