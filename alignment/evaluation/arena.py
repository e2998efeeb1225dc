"""Arena-Hard, versions 0.1 and 2.0: verdicts of models against a baseline in both orders, and their scores.

A strong verdict (``>>``) counts three times, a tie is half a win. In v0.1 a game without a verdict is dropped, in v2.0
both games of that question.

Every model meets only the baseline, so the unpenalised Bradley-Terry strength of v0.1, put back on the scale of win
rates against the baseline, *is* ``(wins + ties / 2) / battles``, and no optimiser runs. With style control there is a
logistic regression: of v0.1 with scikit-learn's default L2 penalty, of v2.0 without.

Differs from arena-hard-auto: an interval resamples prompts, because both games and all copies of a strong verdict share
one (``unit="battle"`` resamples battles, as upstream does, and is too narrow); a model whose battles all agree, of
which all samples are the same, gets Wilson's interval at its number of prompts, that of the plain rate also where the
score is at equal style; scores are those of all battles, where v2.0 takes the mean, and with style control the median,
of its samples; in samples of v0.1's style control a tie stays half a win.

Sources: 2406.11939 and the code of arena-hard-auto.

Shape letters: ``N`` battles, ``P`` prompts, ``M`` models, ``F`` style features, ``S`` bootstrap samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from alignment.errors import UserError
from alignment.evaluation.intervals import Array, mean_interval, numbered
from alignment.progress import Progress, tracked

Version = Literal["v0.1", "v2.0"]
Unit = Literal["prompt", "battle"]

STYLE = ("token_len", "header_count", "list_count", "bold_count")
# Percentiles of the published intervals.
_PERCENTILES: dict[Version, tuple[float, float]] = {"v0.1": (2.5, 97.5), "v2.0": (5.0, 95.0)}
# No log-odds beyond: a rate of 100 to ten digits. Separated samples would let the optimiser wander.
_FARTHEST = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Battle:
    """One verdict on a model's answer against the baseline's.

    Attributes:
        prompt: which question.
        win: share that the model wins: 1, 1/2 or 0.
        count: how often it counts.
    """

    prompt: str
    win: float
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All battles of one model against the baseline of one category.

    Attributes:
        model: its name.
        baseline: the other's.
        category: of the questions.
        battles: those with a verdict.
        num_dropped: games without one, and in v2.0 those dropped with them.
    """

    model: str
    baseline: str
    category: str
    battles: tuple[Battle, ...]
    num_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaScore:
    """A model's score against the baseline, in points.

    Attributes:
        category: of the questions.
        model: its name.
        baseline: 50 points.
        score: win rate against the baseline, or what is left of it at equal style.
        low: lower end of the interval; that of the plain rate where all battles agree.
        high: its upper end.
        n_wins: battles won, strong ones counted three times.
        n_ties: tied.
        n_battles: all of them.
        n_prompts: questions that they are on.
        n_dropped: games that do not count.
    """

    category: str
    model: str
    baseline: str
    score: float
    low: float
    high: float
    n_wins: int
    n_ties: int
    n_battles: int
    n_prompts: int
    n_dropped: int


def arena_score(contest: Contest, *, version: Version, unit: Unit, num_samples: int, seed: int) -> ArenaScore:
    """The win rate against the baseline with a percentile interval: 95 % in v0.1, 90 % in v2.0.

    Args:
        contest: of one model.
        version: decides the percentiles.
        unit: what is resampled.
        num_samples: S.
        seed: of the samples.
    """
    battles = _counted(contest, unit)
    unit_N = numbered([battle.prompt for battle in battles] if unit == "prompt" else range(len(battles)))
    count_N = np.array([battle.count for battle in battles], dtype=np.float64)
    wins_U = np.bincount(unit_N, weights=count_N * [battle.win for battle in battles])
    counts_U = np.bincount(unit_N, weights=count_N)
    drawn_SU = _draws(np.random.default_rng(seed), len(wins_U), num_samples)
    rates_S = (drawn_SU @ wins_U) / (drawn_SU @ counts_U)
    return _score(contest, float(wins_U.sum() / counts_U.sum()), rates_S, version)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StyleControlled:
    """Scores at equal style.

    Attributes:
        scores: one of each model.
        effects: log-odds for one standard deviation more of each feature of :data:`STYLE`.
    """

    scores: tuple[ArenaScore, ...]
    effects: dict[str, float]


def style_controlled(
    contests: Sequence[Contest],
    style: Mapping[tuple[str, str], Array],
    *,
    version: Version,
    unit: Unit,
    num_samples: int,
    seed: int,
    progress: Progress = lambda *_: None,
) -> StyleControlled:
    """Scores of all models of a category from one logistic regression on models and style, refitted in a bootstrap.

    A model that won or lost every battle has no finite strength without a penalty: in v2.0 it stays at 100 or 0, and
    out of the regression.

    Args:
        contests: of all models of one category, against one baseline.
        style: (model, prompt) -> the counts of :data:`STYLE`, the baseline's as well.
        version: decides features, penalty and percentiles.
        unit: what is resampled; prompts are resampled for all models together.
        num_samples: S.
        seed: of the samples.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        UserError: if the style of an answer is missing.
    """
    fitted = [contest for contest in contests if version == "v0.1" or 0.0 < _rate(contest) < 1.0]
    rows = [(place, battle) for place, contest in enumerate(fitted) for battle in _counted(contest, unit)]
    if not rows:
        raise UserError(
            "expected a model that won some battles and lost some, found none; no effect of style can be fitted"
        )
    ours_NF = np.stack([_style(style, fitted[place].model, battle.prompt) for place, battle in rows])
    theirs_NF = np.stack([_style(style, fitted[place].baseline, battle.prompt) for place, battle in rows])
    win_N = np.array([battle.win for _, battle in rows])
    count_N = np.array([battle.count for _, battle in rows], dtype=np.float64)
    model_NM = np.eye(len(fitted))[[place for place, _ in rows]]
    features_NF = _standardised(style_differences(ours_NF, theirs_NF, version), count_N, version)
    if version == "v0.1":
        # Strengths are powers of ten, the baseline has one, too, and every battle is entered twice: so large is the
        # penalty, 1/2 sum w^2, beside the rest.
        design_NX = np.concatenate([np.log(10) * model_NM, np.full((len(rows), 1), -np.log(10)), features_NF], axis=1)
        copies, penalty = 2.0, 1.0
    else:
        design_NX, copies, penalty = np.concatenate([model_NM, features_NF], axis=1), 1.0, 0.0

    def fit(weight_N: Array) -> tuple[Array, Array]:
        weights_X = fit_logistic(design_NX, win_N, copies * weight_N, penalty=penalty)
        logits_M = weights_X[: len(fitted)]
        if version == "v0.1":
            logits_M = np.log(10) * (logits_M - weights_X[len(fitted)])
        return np.where(weight_N @ model_NM > 0.0, expit(logits_M), np.nan), weights_X[-len(STYLE) :]

    rates_M, effects_F = fit(count_N)
    unit_N = numbered([battle.prompt for _, battle in rows] if unit == "prompt" else range(len(rows)))
    rates_SM = np.empty((num_samples, len(fitted)))
    draws = _draws(np.random.default_rng(seed), unit_N.max() + 1, num_samples)
    for done, drawn_U in zip(tracked(range(num_samples), "bootstrap", progress), draws, strict=True):
        rates_SM[done] = fit(count_N * drawn_U[unit_N])[0]
    found = {
        contest.model: _score(contest, float(rate), rates_S[~np.isnan(rates_S)], version)
        for contest, rate, rates_S in zip(fitted, rates_M, rates_SM.T, strict=True)
    }
    return StyleControlled(
        scores=tuple(
            found[contest.model] if contest.model in found else _score(contest, _rate(contest), np.array([]), version)
            for contest in contests
        ),
        effects=dict(zip(STYLE, effects_F.tolist(), strict=True)),
    )


def style_differences(ours_NF: Array, theirs_NF: Array, version: Version) -> Array:
    """Relative differences of the counts of :data:`STYLE`, in [-1, 1].

    v0.1 takes ``(a - b) / (a + b + 1)`` of all; v2.0 ``(a - b) / (a + b)`` of tokens, and the former of the others per
    token, ``count / (tokens + 1)``.

    Example:
        >>> style_differences(np.array([[2.0, 4, 0, 0]]), np.array([[1.0, 2, 0, 0]]), "v0.1").round(3).tolist()
        [[0.25, 0.286, 0.0, 0.0]]
    """
    if version == "v0.1":
        return np.asarray((ours_NF - theirs_NF) / (ours_NF + theirs_NF + 1.0))
    tokens_N = ours_NF[:, 0] + theirs_NF[:, 0]
    lengths_N = np.where(
        tokens_N > 0.0, (ours_NF[:, 0] - theirs_NF[:, 0]) / np.where(tokens_N > 0.0, tokens_N, 1.0), 0.0
    )
    ours_N3, theirs_N3 = (side_NF[:, 1:] / (side_NF[:, :1] + 1.0) for side_NF in (ours_NF, theirs_NF))
    return np.concatenate([lengths_N[:, None], (ours_N3 - theirs_N3) / (ours_N3 + theirs_N3 + 1.0)], axis=1)


def fit_logistic(design_NX: Array, win_N: Array, weight_N: Array, *, penalty: float) -> Array:
    """Weights [X] that minimise ``sum_i weight_i CE(win_i, sigmoid(w x_i)) + penalty / 2 |w|^2``.

    No weight goes beyond 24, where separated battles would have it infinite.

    Args:
        design_NX: one row for each battle.
        win_N: soft labels in [0, 1].
        weight_N: what a row counts for.
        penalty: strength of the L2 penalty.
    """
    scale = float(weight_N.sum())

    def loss(weights_X: Array) -> tuple[float, Array]:
        logits_N = design_NX @ weights_X
        entropy = float(weight_N @ (np.logaddexp(0.0, logits_N) - win_N * logits_N))
        slope_X = design_NX.T @ (weight_N * (expit(logits_N) - win_N)) + penalty * weights_X
        return (entropy + penalty / 2.0 * float(weights_X @ weights_X)) / scale, slope_X / scale

    start_X = np.zeros(design_NX.shape[1])
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-8}
    bounds = [(-_FARTHEST, _FARTHEST)] * len(start_X)
    return np.asarray(minimize(loss, start_X, jac=True, bounds=bounds, method="L-BFGS-B", options=options).x)


def _style(style: Mapping[tuple[str, str], Array], model: str, prompt: str) -> Array:
    if (model, prompt) not in style:
        raise UserError(f"expected the style of {model} on {prompt}, found none; give its answers by --answers, too")
    return style[model, prompt]


def _standardised(features_NF: Array, count_N: Array, version: Version) -> Array:
    """Mean 0 and variance 1 over battles; a feature that does not vary is 0."""
    total = count_N.sum()
    centred_NF = features_NF - (count_N @ features_NF) / total
    deviation_F = np.sqrt((count_N @ centred_NF**2) / (total if version == "v0.1" else max(total - 1.0, 1.0)))
    return np.asarray(centred_NF / np.where(deviation_F > 0.0, deviation_F, 1.0))


def _counted(contest: Contest, unit: Unit) -> list[Battle]:
    """The battles; where battles are resampled, a strong one is three."""
    if unit == "prompt":
        return list(contest.battles)
    return [Battle(prompt=battle.prompt, win=battle.win) for battle in contest.battles for _ in range(battle.count)]


def _draws(generator: np.random.Generator, num_units: int, num_samples: int) -> NDArray[np.int64]:
    """How often each unit is in each bootstrap sample."""
    return generator.multinomial(num_units, np.full(num_units, 1.0 / num_units), size=num_samples)


def _rate(contest: Contest) -> float:
    return sum(battle.win * battle.count for battle in contest.battles) / sum(b.count for b in contest.battles)


def _score(contest: Contest, rate: float, rates_S: Array, version: Version) -> ArenaScore:
    prompts = numbered([battle.prompt for battle in contest.battles])
    percentiles = _PERCENTILES[version]
    if prompts.max() == 0 or len({battle.win for battle in contest.battles}) == 1 or len(rates_S) == 0:
        # Samples of one prompt, or of battles that all agree, are all the same.
        wins, error = [battle.win for battle in contest.battles], 1.0 - (percentiles[1] - percentiles[0]) / 100.0
        wilson = mean_interval(wins, prompts.tolist(), error=error)
        low, high = 100.0 * wilson.low, 100.0 * wilson.high
    else:
        low, high = (float(end) for end in np.percentile(100.0 * rates_S, percentiles))
    return ArenaScore(
        category=contest.category,
        model=contest.model,
        baseline=contest.baseline,
        score=100.0 * rate,
        low=low,
        high=high,
        n_wins=sum(battle.count for battle in contest.battles if battle.win == 1.0),
        n_ties=sum(battle.count for battle in contest.battles if battle.win == 0.5),
        n_battles=sum(battle.count for battle in contest.battles),
        n_prompts=int(prompts.max()) + 1,
        n_dropped=contest.num_dropped,
    )
