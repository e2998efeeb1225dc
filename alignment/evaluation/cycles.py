"""Do these preferences go in circles, and could a method that looks for an equilibrium gain from it?

A table of noisy verdicts always has some circles and is never quite Bradley-Terry. So everything here comes with what
noise alone would show: normal draws around the table, or around its best Bradley-Terry fit, with the covariance of the
pairs.

What an equilibrium can gain. A Bradley-Terry reward settles on the item b with the highest strength, which is the one
with the highest mean win rate where all pairs weigh the same. Its worst case is the item that beats it most. An
equilibrium of the unregularised game is beaten by nobody, so it raises the worst-case win rate by the exploitability

    e = max_i P(i beats b) - 1/2

of that choice, and by no more. e is 0 if b is a Condorcet winner, whatever circles there are below it.

Shape letters: ``K`` items, ``E`` compared pairs, ``S`` simulated tables. NumPy float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import logit, xlogy

from alignment.evaluation.bradley_terry import fit_bradley_terry
from alignment.evaluation.intervals import LEVEL, Array, Estimate, normal_draws
from alignment.evaluation.lottery import Lottery, maximal_lottery
from alignment.evaluation.transitivity import (
    HodgeShares,
    Transitivity,
    complete_triples,
    consistence,
    cyclic_triples,
    disc_shares,
    hodge_shares,
    incidence,
    project,
    stochastic_transitivity,
)
from alignment.evaluation.win_matrix import WinMatrix

Kind = Literal["cyclic", "transitive", "bradley_terry", "unknown"]

_NUM_DRAWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Circle:
    """A cyclic triple: each is ahead of the next, the last of the first.

    Attributes:
        names: of the items.
        frequency: share of tables drawn around this one in which it goes round the same way.
        is_certain: all three are above 1/2 by the simultaneous intervals.
    """

    names: tuple[str, str, str]
    frequency: float
    is_certain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodnessOfFit:
    """How well Bradley-Terry describes a table.

    Attributes:
        g2: twice the log-likelihood that it loses against the table itself, verdicts taken for independent; for a known
            table ``None``.
        degrees: (K - 1)(K - 2)/2 where all pairs were compared.
        p_value: of the fit, with the covariance of the pairs; for a known table 1 or 0.
        max_error: largest difference of a cell.
        is_finite: whether the strengths are; if not, some items beat others without exception.
    """

    g2: float | None
    degrees: int
    p_value: float
    max_error: float
    is_finite: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Diagnosis:
    """What a table says about order and circles.

    Attributes:
        matrix: the table.
        low_KK: simultaneous lower ends.
        high_KK: simultaneous upper ends.
        circles: the cyclic triples.
        num_triples: triples of which all pairs were compared.
        circles_by_chance: mean number of cyclic triples in tables drawn around the Bradley-Terry fit.
        circles_p_value: share of those tables with at least as many.
        is_cyclic: items go in a circle (of any length) by the simultaneous intervals: wrong with 5 % at most.
        consistence: Kendall's coefficient; ``None`` where not all pairs were compared.
        transitivity: violations of stochastic transitivity.
        hodge: parts of the logits, ``None`` where a known probability is 0 or 1; a cell of verdicts that all agree is
            read as if half a verdict had gone either way.
        hodge_margins: parts of P - 1/2.
        cyclic_energy: share of the logits' squared norm that no score explains, with an interval that covers 95 % at
            least: it holds 0 unless the circulation is longer than noise makes it.
        discs: shares of the discs of the logits (else of P - 1/2); ``None`` where not all pairs were compared.
        fit: of Bradley-Terry.
        lottery: the maximal lottery; ``None`` where not all pairs were compared.
        best: the item with the highest mean win rate.
        challenger: who beats it most, ``None`` where nobody does.
        gain: by how much an equilibrium can raise the worst-case win rate of Bradley-Terry's choice at most, with an
            interval of 95 % that allows for not knowing the choice.
    """

    matrix: WinMatrix
    low_KK: Array
    high_KK: Array
    circles: tuple[Circle, ...]
    num_triples: int
    circles_by_chance: float
    circles_p_value: float
    is_cyclic: bool
    consistence: float | None
    transitivity: Transitivity
    hodge: HodgeShares | None
    hodge_margins: HodgeShares
    cyclic_energy: Estimate | None
    discs: tuple[float, ...] | None
    fit: GoodnessOfFit
    lottery: Lottery | None
    best: str
    challenger: str | None
    gain: Estimate

    @property
    def kind(self) -> Kind:
        """``cyclic``: surely circles. ``transitive``: no circle is sure, and Bradley-Terry does not fit.
        ``bradley_terry``: nothing speaks against it. ``unknown``: no three items were all compared.

        A false circle needs a pair that is surely ahead the wrong way round, which happens in 2.5 % at most; the fit is
        refused at 2.5 % as well, so that Bradley-Terry is accused of anything in 5 % at most.
        """
        if self.num_triples == 0 and len(self.matrix.names) > 2:
            return "unknown"
        if self.is_cyclic:
            return "cyclic"
        return "transitive" if self.fit.p_value < LEVEL / 2.0 else "bradley_terry"

    @property
    def sentence(self) -> str:
        """Can a method that looks for an equilibrium help here, and how much at most."""
        points = f"{self.gain.describe(100.0, 1)} points"
        if self.kind == "unknown":
            return "Nothing can be said about a Nash method: no three of the items were all compared with one another."
        if self.gain.low > 0.0:
            return (
                f"A Nash method can help: a Bradley-Terry reward settles on {self.best}, which {self.challenger} "
                f"beats, and an equilibrium raises the worst-case win rate by at most {points} of 50."
            )
        circles = {
            "cyclic": f"there are circles, but none that surely takes in {self.best}",
            "transitive": "Bradley-Terry does not fit, but no circle is sure",
            "bradley_terry": "nothing speaks against Bradley-Terry",
        }[self.kind]
        missing = "" if self.matrix.is_complete else ", pairs that nobody compared allowed for"
        return (
            f"No sign that a Nash method helps: {circles}, and an equilibrium raises the worst-case win rate of a "
            f"Bradley-Terry reward's choice ({self.best}) by at most {points} of 50{missing}."
        )


def diagnose_matrix(matrix: WinMatrix, *, seed: int = 0) -> Diagnosis:
    """Order and circles of a table of win probabilities.

    Args:
        matrix: at least two items.
        seed: of the simulated tables.
    """
    low_KK, high_KK = matrix.cell_ends()
    probability_E = _fitted_pairs(matrix)
    noise_SE = null_noise_SE = np.zeros((1, len(matrix.wins_E)))
    if not matrix.is_exact:
        noise_SE = normal_draws(matrix.covariance_EE, _NUM_DRAWS, seed)
        null_noise_SE = normal_draws(_null_covariance(matrix, probability_E), _NUM_DRAWS, seed)
    by_chance_S = _count_circles(matrix, probability_E + null_noise_SE)
    found = cyclic_triples(matrix.wins_KK)
    logits_E, slope_E = _logits(matrix)
    best, challenger, gain = _gain(matrix)
    flow_KK = None if logits_E is None else matrix.fill(logits_E, np.nan, -logits_E)
    if flow_KK is not None:
        np.fill_diagonal(flow_KK, 0.0)
    return Diagnosis(
        matrix=matrix,
        low_KK=low_KK,
        high_KK=high_KK,
        circles=_circles(matrix, found, low_KK, matrix.wins_E + noise_SE),
        num_triples=complete_triples(matrix.wins_KK),
        circles_by_chance=float(by_chance_S.mean()),
        circles_p_value=float((by_chance_S >= len(found)).mean()),
        is_cyclic=_has_cycle(low_KK > 0.5 + 1e-9),
        consistence=consistence(len(found), len(matrix.names))
        if matrix.is_complete and len(matrix.names) > 2
        else None,
        transitivity=stochastic_transitivity(matrix.wins_KK),
        hodge=None if flow_KK is None else hodge_shares(flow_KK),
        hodge_margins=hodge_shares(matrix.wins_KK - 0.5),
        cyclic_energy=None if logits_E is None else _cyclic_energy(matrix, logits_E, noise_SE * slope_E),
        discs=disc_shares(matrix.wins_KK - 0.5 if flow_KK is None else flow_KK) if matrix.is_complete else None,
        fit=_goodness_of_fit(matrix, probability_E, null_noise_SE),
        lottery=maximal_lottery(matrix.wins_KK) if matrix.is_complete else None,
        best=best,
        challenger=challenger,
        gain=gain,
    )


def _weights(matrix: WinMatrix) -> Array:
    """Weights of the pairs in a likelihood: their counts, and 1 each for a known table."""
    return np.ones(len(matrix.wins_E)) if matrix.is_exact else matrix.counts_E


def _fitted_pairs(matrix: WinMatrix) -> Array:
    """The best Bradley-Terry probabilities of the pairs."""
    weights_E = _weights(matrix)
    wins_KK = matrix.fill(weights_E * matrix.wins_E, 0.0, weights_E * (1.0 - matrix.wins_E))
    return np.asarray(fit_bradley_terry(wins_KK).probability_KK[matrix.first_E, matrix.second_E])


def _null_covariance(matrix: WinMatrix, probability_E: Array) -> Array:
    """The covariance that the pairs would have around the fit: correlations and dispersions as those of the table, and
    the variances p (1 - p) / n of the fit in place of its own, which noise away from 1/2 makes too small."""
    padded_E = matrix.padded_E
    scale_E = np.sqrt(probability_E * (1.0 - probability_E) / (padded_E * (1.0 - padded_E)))
    return np.asarray(matrix.covariance_EE * np.outer(scale_E, scale_E))


def _goodness_of_fit(matrix: WinMatrix, probability_E: Array, noise_SE: Array) -> GoodnessOfFit:
    """Pearson's statistic of the residuals against its distribution when verdicts scatter around the fit.

    Residuals are what noise leaves after the fit has followed it: ``dE = dP - V X (X' n V X)^+ X' n dP`` with V = p(1 -
    p), n the counts and X the differences of items. With independent verdicts that is Pearson's chi2 test.
    """
    weights_E, rate_E = _weights(matrix), matrix.wins_E
    residual_E = rate_E - probability_E
    variance_E = probability_E * (1.0 - probability_E)
    design_EK = incidence(matrix.first_E, matrix.second_E, len(matrix.names))
    free = np.flatnonzero(variance_E > 0.0)
    num_parts = connected_components(np.abs(design_EK.T @ design_EK) > 0.0)[0]
    degrees = len(rate_E) - len(matrix.names) + num_parts
    described = GoodnessOfFit(
        g2=None,
        degrees=degrees,
        p_value=float(np.abs(residual_E).max() < 1e-6),
        max_error=float(np.abs(residual_E).max()),
        is_finite=len(free) == len(rate_E),
    )
    if matrix.is_exact:
        return described
    terms_E = xlogy(rate_E, rate_E) - xlogy(rate_E, probability_E)
    terms_E += xlogy(1.0 - rate_E, 1.0 - rate_E) - xlogy(1.0 - rate_E, 1.0 - probability_E)
    weights_F, variance_F, design_FK = weights_E[free], variance_E[free], design_EK[free]
    information_KK = (design_FK.T * (weights_F * variance_F)) @ design_FK
    follows_FF = (variance_F[:, None] * design_FK) @ np.linalg.pinv(information_KK) @ (design_FK.T * weights_F)
    left_SF = noise_SE[:, free] @ (np.eye(len(free)) - follows_FF).T
    statistic = (weights_F * residual_E[free] ** 2 / variance_F).sum()
    by_chance_S = (weights_F * left_SF**2 / variance_F).sum(1)
    # A table that is fitted without a residual is no evidence, whatever rounding leaves of it.
    p_value = 1.0 if statistic < 1e-9 else float((1.0 + (by_chance_S >= statistic).sum()) / (1.0 + len(by_chance_S)))
    return replace(described, g2=float(2.0 * (weights_E * terms_E).sum()), p_value=p_value)


def _count_circles(matrix: WinMatrix, tables_SE: Array) -> Array:
    ahead_SKK = np.zeros((len(tables_SE), *matrix.wins_KK.shape), dtype=np.float32)
    ahead_SKK[:, matrix.first_E, matrix.second_E] = tables_SE > 0.5 + 1e-9
    ahead_SKK[:, matrix.second_E, matrix.first_E] = tables_SE < 0.5 - 1e-9
    # Closed walks of three steps: each circle is counted from each of its items.
    return np.asarray(np.einsum("sij,sji->s", ahead_SKK @ ahead_SKK, ahead_SKK) / 3.0)


def _circles(
    matrix: WinMatrix, found: Sequence[tuple[int, int, int]], low_KK: Array, tables_SE: Array
) -> tuple[Circle, ...]:
    place = {pair: e for e, pair in enumerate(zip(matrix.first_E.tolist(), matrix.second_E.tolist(), strict=True))}

    def ahead(i: int, j: int) -> NDArray[np.bool_]:
        return tables_SE[:, place[i, j]] > 0.5 if i < j else tables_SE[:, place[j, i]] < 0.5

    return tuple(
        Circle(
            names=(matrix.names[i], matrix.names[j], matrix.names[k]),
            frequency=float((ahead(i, j) & ahead(j, k) & ahead(k, i)).mean()),
            is_certain=bool(min(low_KK[i, j], low_KK[j, k], low_KK[k, i]) > 0.5),
        )
        for i, j, k in found
    )


def _has_cycle(ahead_KK: NDArray[np.bool_]) -> bool:
    return bool(connected_components(ahead_KK, directed=True, connection="strong")[0] < len(ahead_KK))


def _logits(matrix: WinMatrix) -> tuple[Array | None, Array]:
    """Logits of the pairs and their slopes, or no logits where a known probability is 0 or 1."""
    rate_E, counts_E = matrix.wins_E, matrix.counts_E
    is_extreme_E = (rate_E <= 0.0) | (rate_E >= 1.0)
    if matrix.is_exact and is_extreme_E.any():
        return None, rate_E
    counts_E = np.where(np.isinf(counts_E), 0.0, counts_E)
    rate_E = np.where(is_extreme_E, (rate_E * counts_E + 0.5) / (counts_E + 1.0), rate_E)
    return np.asarray(logit(rate_E)), 1.0 / (rate_E * (1.0 - rate_E))


def _cyclic_energy(matrix: WinMatrix, logits_E: Array, noise_SE: Array) -> Estimate:
    """Of lengths: an estimated part of the flow is no farther from the true one than noise is long.

    With |C| and |S| the lengths of the circulation and of the gradient, the energy is |C|^2 / (|C|^2 + |S|^2), and each
    length is within that of its noise, whose 95 % points are taken together.
    """
    design_EK = incidence(matrix.first_E, matrix.second_E, len(matrix.names))

    def lengths(flows_SE: Array) -> Array:
        gradient_ES = project(flows_SE.T, design_EK)
        return np.stack([np.linalg.norm(flows_SE.T - gradient_ES, axis=0), np.linalg.norm(gradient_ES, axis=0)])

    found_2 = lengths(logits_E[None])[:, 0]
    noise_2S = lengths(noise_SE)
    scale_2 = np.median(noise_2S, axis=1)
    reach_2 = scale_2 * np.quantile((noise_2S / scale_2.clip(min=1e-300)[:, None]).max(0), 1.0 - LEVEL)
    low_2, high_2 = (found_2 - reach_2).clip(min=0.0), found_2 + reach_2

    def energy(circulation: float, gradient: float) -> float:
        total = circulation**2 + gradient**2
        share = circulation**2 / total if total > 0.0 else 0.0
        # Rounding leaves hairs where there is no circulation.
        return 0.0 if share < 1e-12 else float(share)

    return Estimate(
        mean=energy(*found_2),
        low=energy(low_2[0], high_2[1]),
        high=energy(high_2[0], low_2[1]),
        num_prompts=0 if matrix.is_exact else int(matrix.num_prompts),
    )


def _gain(matrix: WinMatrix) -> tuple[str, str | None, Estimate]:
    """Intervals of all cells and of all differences of mean win rates at once; then the worst over possible choices."""
    scores_KE = matrix.score_map_KE
    first_D, second_D = np.triu_indices(len(matrix.names), 1)
    differences_DE = scores_KE[first_D] - scores_KE[second_D]
    error = matrix.joint_error(np.eye(len(matrix.wins_E)), differences_DE)
    low_KK, high_KK = matrix.cell_ends(error)
    low_D, high_D = matrix.function_ends(differences_DE, error)
    is_beaten_K = np.zeros(len(matrix.names), dtype=bool)
    is_beaten_K[second_D[low_D > 1e-9]] = True
    is_beaten_K[first_D[high_D < -1e-9]] = True
    best = int(matrix.score_K.argmax())
    against_K = np.nan_to_num(matrix.wins_KK[:, best], nan=0.0)
    challenger = int(against_K.argmax())
    mean = float(against_K[challenger]) - 0.5
    estimate = Estimate(
        mean=mean,
        low=float(low_KK[:, ~is_beaten_K].max(0).min()) - 0.5,
        high=float(high_KK[:, ~is_beaten_K].max(0).max()) - 0.5,
        num_prompts=0 if matrix.is_exact else int(matrix.num_prompts),
    )
    return matrix.names[best], matrix.names[challenger] if mean > 1e-9 else None, estimate
