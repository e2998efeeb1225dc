"""AlpacaEval 2's length-controlled win rate: a logistic model of one model's judgements, read off at equal lengths.

    P(model wins on i) = sigmoid(phi t_i + psi gamma_i + theta),      t_i = tanh(D_i / sd(D)),

D is the baseline's length minus the model's, in characters, not centred; gamma is how hard an instruction is. The
win rate is the mean of ``sigmoid(psi gamma_i + theta)`` over the model's rows: the length term is left out. Judgements
of the baseline against wordy and concise versions of itself regularise phi and psi; they have no theta. Source:
2404.04475, and alpaca_eval 0.6.6 where the paper is silent.

Differs from alpaca_eval: the minimiser is found to convergence, where liblinear stops early (up to .004 points apart);
the folds of the cross-validation are interleaved; a model whose lengths all equal the baseline's has t = 0, where
alpaca_eval divides by zero.

Shape letters: ``N`` judged instructions of a model, ``R`` regularising rows, ``M`` rows of a fit, ``F`` the three
features (t, gamma, theta's constant), ``I`` instructions of the set, ``S`` bootstrap samples.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from alignment.errors import UserError
from alignment.evaluation.alpaca import Judgements
from alignment.evaluation.intervals import Array
from alignment.evaluation.published import Record, check_distinct, read_records
from alignment.progress import Progress, tracked
from alignment.values import nearest

GRID = tuple(float(c) for c in np.logspace(-4, 4, 10))
"""Values of C that the cross-validation chooses from."""

NUM_FOLDS = 5
# Lambda is .2, and there are two versions of the baseline.
REGULARIZER_WEIGHT = 0.2 / 2

Variant = Literal["length_controlled_v1", "noreg", "minimal"]
Index = Literal["id", "positional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The fitted weights of a model.

    Attributes:
        length: phi, of ``tanh`` of the length difference; negative where the judge likes length.
        difficulty: psi, of the instruction's difficulty.
        model: theta, the model itself.
    """

    length: float
    difficulty: float
    model: float


NO_WEIGHTS = Weights(length=0.0, difficulty=0.0, model=0.0)
"""Of the baseline against itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regularizer:
    """Judgements of the baseline against concise and wordy versions of itself.

    Attributes:
        length_R: the length difference over its standard deviation, before ``tanh``.
        difficulty_R: of the instruction.
        wins_R: share that the version wins, in [0, 1]; nan for no verdict.
        is_surrogate: whether ``wins_R`` stands in for the judge's own labels.
    """

    length_R: Array
    difficulty_R: Array
    wins_R: Array
    is_surrogate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Difficulty:
    """How hard the instructions of the set are.

    Attributes:
        ids_I: their numbers, in the order of the set.
        values_I: gamma.
    """

    ids_I: tuple[int, ...]
    values_I: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What is fitted: a model's rows.

    Attributes:
        difference_N: the baseline's length minus the model's.
        wins_N: share that the model wins; nan for no verdict.
        difficulty_N: zeros where the variant has none.
    """

    difference_N: Array
    wins_N: Array
    difficulty_N: Array

    def take(self, rows: NDArray[np.int64]) -> "Sample":
        """Some of the rows, each as often as it is named."""
        return Sample(
            difference_N=self.difference_N[rows], wins_N=self.wins_N[rows], difficulty_N=self.difficulty_N[rows]
        )


def make_sample(judgements: Judgements, difficulty_N: Array | None) -> Sample:
    """The rows of a fit.

    Args:
        judgements: of one model.
        difficulty_N: see :func:`align_difficulty`; ``None`` for the variant ``minimal``.
    """
    wins_N = judgements.wins_N
    return Sample(
        difference_N=judgements.length_1_N - judgements.length_2_N,
        wins_N=wins_N,
        # A weight on a feature that is always 0 stays 0, so this is the model without gamma.
        difficulty_N=np.zeros_like(wins_N) if difficulty_N is None else difficulty_N,
    )


def align_difficulty(judgements: Judgements, difficulty: Difficulty, index: Index) -> Array:
    """The difficulty of each judged instruction, [N].

    Args:
        judgements: of one model.
        difficulty: of the set.
        index: ``id`` looks instructions up by number. ``positional`` takes the first N of the set, as alpaca_eval does:
            of a model with missing rows, all after the first gap get another instruction's difficulty.

    Raises:
        UserError: if an instruction has no number, or is not in the set.
    """
    count = len(judgements.preference_N)
    if index == "positional":
        if count > len(difficulty.ids_I):
            raise UserError(
                f"expected at most {len(difficulty.ids_I)} rows, the instructions with a difficulty, found {count}; "
                "give the difficulties of this set"
            )
        return difficulty.values_I[:count]
    if judgements.ids_N is None:
        raise UserError(
            "expected a column 'instruction_id' with --index id, found none; give the official set by --instructions, "
            "or take --index positional if no row is missing"
        )
    value = dict(zip(difficulty.ids_I, difficulty.values_I.tolist(), strict=True))
    unknown = [number for number in judgements.ids_N if number not in value]
    if unknown:
        raise UserError(
            f"expected instructions that have a difficulty, found {len(unknown)} without, the first one {unknown[0]}"
        )
    return np.array([value[number] for number in judgements.ids_N])


def scaled_length(difference_N: Array) -> Array:
    """t: ``tanh`` of the difference over its standard deviation; zeros where it does not vary.

    Example:
        >>> scaled_length(np.array([5.0, 5.0])).tolist()
        [0.0, 0.0]
    """
    deviation = float(difference_N.std(ddof=1)) if len(difference_N) > 1 else 0.0
    return np.zeros_like(difference_N) if deviation == 0.0 else np.tanh(difference_N / deviation)


def fit_l1(features_MF: Array, wins_M: Array, weight_M: Array, *, c: float) -> Array:
    """Weights [F] that minimise ``|w|_1 + c sum_i weight_i CE(wins_i, sigmoid(w x_i))``, to convergence.

    Every weight is the difference of two that are not negative, so that the penalty is smooth.

    Args:
        features_MF: one row for each judgement.
        wins_M: soft labels in [0, 1].
        weight_M: what a row counts for.
        c: the inverse strength of the penalty.
    """
    num_features, scale = features_MF.shape[1], c * float(weight_M.sum())

    def loss(halves: Array) -> tuple[float, Array]:
        logits_M = features_MF @ (halves[:num_features] - halves[num_features:])
        entropy = float(weight_M @ (np.logaddexp(0.0, logits_M) - wins_M * logits_M))
        slope_F = c * (features_MF.T @ (weight_M * (expit(logits_M) - wins_M)))
        return (float(halves.sum()) + c * entropy) / scale, np.concatenate([1.0 + slope_F, 1.0 - slope_F]) / scale

    start = np.zeros(2 * num_features)
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(loss, start, jac=True, bounds=[(0.0, None)] * len(start), method="L-BFGS-B", options=options).x
    return np.asarray(found[:num_features] - found[num_features:])


def fit_weights(sample: Sample, regularizer: Regularizer | None, *, c: float) -> Weights:
    """The weights of a model at a given C.

    Args:
        sample: its rows.
        regularizer: ``None`` for the variants ``noreg`` and ``minimal``.
        c: see :func:`fit_l1`.
    """
    length, difficulty, model = fit_l1(*_design(sample, regularizer), c=c).tolist()
    return Weights(length=length, difficulty=difficulty, model=model)


def choose_c(sample: Sample, regularizer: Regularizer | None, *, progress: Progress = lambda *_: None) -> float:
    """The C of :data:`GRID` with the smallest mean log-loss in a 5-fold cross-validation.

    Args:
        sample: the model's rows.
        regularizer: as in :func:`fit_weights`; its rows are in the folds as well.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        UserError: if there are fewer rows than folds.
    """
    features_MF, wins_M, weight_M = _design(sample, regularizer)
    if len(wins_M) < NUM_FOLDS:
        raise UserError(f"expected {NUM_FOLDS} verdicts at least to cross-validate, found {len(wins_M)}; give --c")
    fold_M = np.arange(len(wins_M)) % NUM_FOLDS
    losses = []
    for c in tracked(GRID, "cross-validation", progress):
        losses.append(0.0)
        for fold in range(NUM_FOLDS):
            is_out_M = fold_M == fold
            fitted_F = fit_l1(features_MF[~is_out_M], wins_M[~is_out_M], weight_M[~is_out_M], c=c)
            logits_M = features_MF[is_out_M] @ fitted_F
            losses[-1] += float((weight_M[is_out_M] * (np.logaddexp(0, logits_M) - wins_M[is_out_M] * logits_M)).mean())
    return GRID[int(np.argmin(losses))]


def controlled_wins(weights: Weights, difficulty_N: Array) -> Array:
    """Win probabilities at equal lengths, [N]."""
    return np.asarray(expit(weights.difficulty * difficulty_N + weights.model))


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapError:
    """How far a length-controlled win rate is sampling, in points.

    Samples of one verdict, or of verdicts that all agree, are all the same: they show no error, and none is given.

    Attributes:
        lc_se_bootstrap: standard deviation over samples; ``None`` where they are all the same.
        lc_low: 2.5 % point, or ``None``.
        lc_high: 97.5 % point, or ``None``.
        bootstrap: number of samples.
    """

    lc_se_bootstrap: float | None
    lc_low: float | None
    lc_high: float | None
    bootstrap: int


def bootstrap_error(
    sample: Sample,
    regularizer: Regularizer | None,
    *,
    c: float,
    num_samples: int,
    seed: int,
    progress: Progress = lambda *_: None,
) -> BootstrapError:
    """The spread of the length-controlled win rate over samples of the instructions, each fitted anew.

    The regularising rows stay as they are, the standard deviation of the lengths does not. Upstream's error
    is that of the mean of the predictions: how unlike the instructions are, not how sure the rate is; two to seven
    times smaller on AlpacaEval 2.

    Args:
        sample: the model's rows.
        regularizer: as in :func:`fit_weights`.
        c: not chosen anew.
        num_samples: S.
        seed: of the samples.
        progress: called with what is done, how much of it, and how much there is.
    """
    verdicts = sample.wins_N[~np.isnan(sample.wins_N)]
    if (verdicts == verdicts[:1]).all():
        return BootstrapError(lc_se_bootstrap=None, lc_low=None, lc_high=None, bootstrap=num_samples)
    generator = np.random.default_rng(seed)
    count, rates_S = len(sample.wins_N), np.empty(num_samples)
    for done in tracked(range(num_samples), "bootstrap", progress):
        drawn = sample.take(generator.integers(count, size=count))
        rates_S[done] = 100.0 * controlled_wins(fit_weights(drawn, regularizer, c=c), drawn.difficulty_N).mean()
    low, high = np.percentile(rates_S, [2.5, 97.5]).tolist()
    return BootstrapError(lc_se_bootstrap=float(rates_S.std(ddof=1)), lc_low=low, lc_high=high, bootstrap=num_samples)


def standard_error_upstream(wins_N: Array) -> float | None:
    """alpaca_eval's ``lc_standard_error`` in points, of the predictions' mean; ``None`` of one prediction."""
    return 100.0 * float(wins_N.std(ddof=1)) / math.sqrt(len(wins_N)) if len(wins_N) > 1 else None


def predicted_win_rate(ours: Weights, theirs: Weights, difficulty_I: Array) -> float:
    """The length-controlled win rate of one model against another, predicted from the weights of both, in [0, 1].

    It is the mean of ``sigmoid((theta_a - theta_b) + (psi_a - psi_b) gamma_i)`` over the instructions of the set, and
    that of the other model is 1 minus it.
    """
    difference = Weights(length=0.0, difficulty=ours.difficulty - theirs.difficulty, model=ours.model - theirs.model)
    return float(controlled_wins(difference, difficulty_I).mean())


def read_difficulty(path: Path) -> Difficulty:
    """``instruction_difficulty`` by ``instruction_id``, ``index`` or a first column without a name.

    Raises:
        UserError: if a column is missing, or an instruction comes twice.
    """
    records = read_records(path, "instruction_difficulty")
    ids = [record.integer(_id_column(record)) for record in records]
    check_distinct(ids, records, "an instruction")
    return Difficulty(
        ids_I=tuple(ids), values_I=np.array([record.number("instruction_difficulty") for record in records])
    )


def regularizer_difficulty(path: Path) -> Difficulty:
    """The difficulties that stand in a file of regularising judgements, once for each instruction."""
    records = read_records(path, "instruction_difficulty")
    value = {record.integer(_id_column(record)): record.number("instruction_difficulty") for record in records}
    return Difficulty(ids_I=tuple(value), values_I=np.array(list(value.values())))


def read_regularizer(path: Path) -> Regularizer:
    """AlpacaEval's ``df_gamed.csv``: ``std_delta_len``, ``instruction_difficulty``, ``preference`` in [0, 1].

    Labels in a column ``preference01_surrogate`` are taken too, and marked: they give the same fit at a given C, and
    perhaps another C by cross-validation.

    Raises:
        UserError: if a column is missing, or a label lies outside [0, 1].
    """
    records = read_records(path, "std_delta_len", "instruction_difficulty")
    is_surrogate = "preference01_surrogate" in records[0].values
    label = "preference01_surrogate" if is_surrogate else "preference"
    wins: list[float] = []
    for record in records:
        win = record.number_or_none(label)
        if win is not None and not 0.0 <= win <= 1.0:
            raise UserError(f"{record.source}: expected a share in [0, 1] in {label!r}, found {win}; repair the row")
        wins.append(np.nan if win is None else win)
    return Regularizer(
        length_R=np.array([record.number("std_delta_len") for record in records]),
        difficulty_R=np.array([record.number("instruction_difficulty") for record in records]),
        wins_R=np.array(wins),
        is_surrogate=is_surrogate,
    )


# Our names of the weights -> those of a table of a leaderboard, and those of the files of alpaca_eval.
_WEIGHT_COLUMNS = (
    {"length": "w_len", "difficulty": "w_diff", "model": "w_bias"},
    {
        "length": "np.tanh(std_delta_len)",
        "difficulty": "instruction_difficulty",
        "model": "not_gamed_baseline.astype(float)",
    },
)


def read_weights(path: Path) -> dict[str, Weights]:
    """Published weights by model: AlpacaEval's weight files, or a table with ``w_len``, ``w_diff`` and ``w_bias``.

    A model without weights is left out.
    """
    records = read_records(path)
    columns = next((names for names in _WEIGHT_COLUMNS if names["model"] in records[0].values), _WEIGHT_COLUMNS[0])
    found: dict[str, Weights] = {}
    for record in records:
        values = {ours: record.number_or_none(theirs) for ours, theirs in columns.items()}
        if None not in values.values():
            name = record.name("model", "")
            found[name] = Weights(**{ours: record.number(theirs) for ours, theirs in columns.items()})
    return found


def weights_of(model: str, published: dict[str, Weights]) -> Weights:
    """The weights of one model.

    Raises:
        UserError: if there are none.
    """
    if model not in published:
        raise UserError(f"expected published weights of {model!r}, found none{nearest(model, published)}")
    return published[model]


def _design(sample: Sample, regularizer: Regularizer | None) -> tuple[Array, Array, Array]:
    """Features [M, F], labels [M] and weights [M] of the rows that have a verdict; the regularising ones come first."""
    count = len(sample.wins_N)
    parts = [
        (
            np.stack([scaled_length(sample.difference_N), sample.difficulty_N, np.ones(count)], axis=1),
            sample.wins_N,
            np.ones(count),
        )
    ]
    if regularizer is not None:
        rows = len(regularizer.wins_R)
        features_RF = np.stack([np.tanh(regularizer.length_R), regularizer.difficulty_R, np.zeros(rows)], axis=1)
        parts.insert(0, (features_RF, regularizer.wins_R, np.full(rows, REGULARIZER_WEIGHT)))
    features_MF, wins_M, weight_M = (np.concatenate(column) for column in zip(*parts, strict=True))
    is_verdict_M = ~np.isnan(wins_M)
    return features_MF[is_verdict_M], wins_M[is_verdict_M], weight_M[is_verdict_M]


def _id_column(record: Record) -> str:
    return next((name for name in ("instruction_id", "index", "") if name in record.values), "instruction_id")
