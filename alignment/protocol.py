"""The simulation protocol of EGPO: methods side by side on random games, their duality gaps, and who must cycle.

Shape letters: ``X`` games, ``A`` actions, ``I`` iterations.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.games import PreferenceGame, cyclic, random_games, rock_paper_scissors
from alignment.games.updates import extragradient_update, master_update, nash_md_update, omd_threshold
from alignment.methods import build_method, load_card, method_names
from alignment.progress import Progress
from alignment.tabular import OptimizerName, run_tabular
from alignment.values import nearest_or_all

# Of win probabilities, in all games together: 1 GiB, of which the solver needs several.
_MOST_PREFERENCES = 2**27
ExactUpdate = Callable[[PreferenceGame, Tensor, float], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _LossRun:
    """How a method's own loss is run at mixing weight a: its options, and an inner loop that solves its regression.

    With ``natural`` and lr 1/4 a pair regression takes a Newton step: its Hessian in the metric of the sampler is 4.
    """

    options: Callable[[float, float], dict[str, Any]]
    lr: Callable[[float, float], float] | None = None
    inner_steps: int | None = None
    optimizer: OptimizerName = "sgd"


_EXACT: Mapping[str, ExactUpdate] = {
    "inpo": lambda game, log_pi_XA, a: master_update(game, log_pi_XA, log_pi_XA.softmax(-1), a=a),
    "nash_mp": lambda game, log_pi_XA, a: extragradient_update(game, log_pi_XA, a=a),
    "nash_md": lambda game, log_pi_XA, a: nash_md_update(game, log_pi_XA, a=a),
}

_LOSS: Mapping[str, _LossRun] = {
    "egpo": _LossRun(options=lambda tau, a: {"tau": tau}),
    "omd": _LossRun(options=lambda tau, a: {"tau": tau}),
    "online_ipo": _LossRun(options=lambda tau, a: {"tau": tau}),
    "ipo_md": _LossRun(options=lambda tau, a: {"tau": tau, "mix": a}),
    "inpo": _LossRun(
        options=lambda tau, a: {"tau": tau, "eta": tau / a}, lr=lambda tau, a: 0.25, inner_steps=8, optimizer="natural"
    ),
    "mnpo": _LossRun(
        options=lambda tau, a: {"eta": tau / a, "ref_weight": a, "history_weights": [1.0 - a]},
        lr=lambda tau, a: 0.25,
        inner_steps=8,
        optimizer="natural",
    ),
    "nash_md": _LossRun(options=lambda tau, a: {"tau": tau, "mix": a}, lr=lambda tau, a: a / tau, optimizer="natural"),
    "nash_mp": _LossRun(
        options=lambda tau, a: {"tau": tau, "eta": a / (1.0 - a), "inner_steps": 10},
        lr=lambda tau, a: 0.5 * a / tau,
        optimizer="natural",
    ),
    "nash_prox": _LossRun(
        options=lambda tau, a: {"tau": tau, "eta": a / (1.0 - a), "inner_steps": 10},
        lr=lambda tau, a: 0.5 * a / tau,
        optimizer="natural",
    ),
    "spo": _LossRun(options=lambda tau, a: {"kappa_ref": tau}, lr=lambda tau, a: a / tau, optimizer="natural"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolRow:
    """How one method ended.

    Attributes:
        method: its name; ``:loss`` where the card's own loss ran in place of an exact update.
        final_gap_X: duality gap of the last policy in every game.
        seconds: wall-clock.
        gradients_per_iteration: gradient or exact-update evaluations per iteration.
    """

    method: str
    final_gap_X: Tensor
    seconds: float
    gradients_per_iteration: int

    @property
    def median(self) -> float:
        """Of the gaps over games."""
        return statistics.median(self.final_gap_X.tolist())

    @property
    def maximum(self) -> float:
        """The same."""
        return float(self.final_gap_X.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolResult:
    """What the protocol measured.

    Attributes:
        rows: one per method.
        start_gap_X: gap of the reference, where every run starts.
        omd_threshold_X: largest locally stable mixing weight of mirror descent, from the exact equilibrium.
        step: mixing weight a = 4 lr / n of all methods.
        tau: KL strength.
        lr: step size on logits.
        iterations: of every method.
        gap_curves: method -> gap [I + 1, X], row 0 the start.
    """

    rows: tuple[ProtocolRow, ...]
    start_gap_X: Tensor
    omd_threshold_X: Tensor
    step: float
    tau: float
    lr: float
    iterations: int
    gap_curves: Mapping[str, Tensor] = field(repr=False)

    def save(self, folder: Path) -> list[Path]:
        """Write ``gaps.json`` (all figures) and ``gap.png`` (log scale) into the folder; returns both paths."""
        folder.mkdir(parents=True, exist_ok=True)
        numbers = folder / "gaps.json"
        numbers.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        picture = folder / "gap.png"
        _draw(self, picture)
        return [numbers, picture]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain numbers; curves at up to 1,000 iterations each."""
        points = sorted({round(i * self.iterations / 1000) for i in range(1001)})
        return {
            "tau": self.tau,
            "lr": self.lr,
            "iterations": self.iterations,
            "step": self.step,
            "start_gap": self.start_gap_X.tolist(),
            "omd_threshold": self.omd_threshold_X.tolist(),
            "methods": [
                {
                    "method": row.method,
                    "median": row.median,
                    "maximum": row.maximum,
                    "final_gap": row.final_gap_X.tolist(),
                    "seconds": row.seconds,
                    "gradients_per_iteration": row.gradients_per_iteration,
                }
                for row in self.rows
            ],
            "curve_iterations": points,
            "curves": {name: curve_IX[points].tolist() for name, curve_IX in self.gap_curves.items()},
        }


def default_schedule(tau: float) -> tuple[float, int]:
    """Step size and iterations of the released simulation for this tau (2503.08942); scaled for other values.

    Returns:
        ``lr`` and ``iterations``: (0.1, 1000) at tau 0.1, (0.02, 5000) at 0.01, (2e-4, 100000) at 0.001.
    """
    released = {0.1: (0.1, 1000), 0.01: (0.02, 5000), 0.001: (2e-4, 100_000)}
    for known, schedule in released.items():
        if math.isclose(tau, known):
            return schedule
    # Between the released points: the same lr / tau as at 0.1, and as many time constants n / (4 lr).
    return tau, math.ceil(100 / tau)


def run_protocol(
    *,
    games: str,
    methods: Sequence[str],
    tau: float,
    lr: float | None,
    iterations: int | None,
    seeds: Sequence[int],
    num_games: int,
    num_actions: int,
    progress: Progress | None = None,
) -> ProtocolResult:
    """Run methods from the reference on the same games, with exact expectations.

    ``inpo``, ``nash_mp`` and ``nash_md`` run as the exact policy updates that their losses realise; ``NAME:loss`` runs
    the card's own loss.

    Args:
        games: ``random`` (the protocol's), ``cyclic`` or ``rps``.
        methods: names, optionally with ``:loss``.
        tau: KL strength, above 0.
        lr: step size on logits; ``None`` for the released one at this tau.
        iterations: ``None`` for the released number.
        seeds: of random games; the games of all seeds run side by side.
        num_games: random games per seed.
        num_actions: actions of random and cyclic games.
        progress: called with method, iteration and total.

    Raises:
        UserError: for an unknown game or a method that has no equilibrium to look for, a method or seed that comes
            twice, a negative seed, and games that no memory holds.
    """
    _check_distinct("methods", methods)
    _check_distinct("seed", seeds)
    if min(seeds) < 0:
        raise UserError(f"seed: expected numbers of at least 0, got {min(seeds)}")
    if not tau > 0:
        raise UserError(f"expected tau > 0, got {tau:g}: the protocol's gap is that of the regularised game")
    default_lr, default_iterations = default_schedule(tau)
    lr = default_lr if lr is None else lr
    iterations = default_iterations if iterations is None else iterations
    game = _build_games(games, tau=tau, seeds=seeds, num_games=num_games, num_actions=num_actions)
    a = 4.0 * lr / game.ref_XA.shape[1]
    if not 0 < a <= 1:
        raise UserError(f"expected 0 < lr <= actions / 4 = {game.ref_XA.shape[1] / 4:g}, got lr = {lr:g}")
    curves, rows = {}, []
    for name in methods:
        started = time.perf_counter()
        curves[name], evaluations = _run(name, game, lr=lr, a=a, iterations=iterations, progress=progress)
        rows.append(
            ProtocolRow(
                method=name,
                final_gap_X=curves[name][-1],
                seconds=time.perf_counter() - started,
                gradients_per_iteration=evaluations,
            )
        )
    return ProtocolResult(
        rows=tuple(rows),
        start_gap_X=game.duality_gap(game.ref_XA),
        omd_threshold_X=omd_threshold(game, game.solve(1e-12).policy_XA),
        step=a,
        tau=tau,
        lr=lr,
        iterations=iterations,
        gap_curves=curves,
    )


def _check_distinct(key: str, values: Sequence[object]) -> None:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise UserError(f"{key}: expected each once, got {twice[0]} twice; leave one out")


def _build_games(games: str, *, tau: float, seeds: Sequence[int], num_games: int, num_actions: int) -> PreferenceGame:
    count = num_actions**2 * (len(seeds) * num_games if games == "random" else 1)
    if games != "rps" and count > _MOST_PREFERENCES:
        raise UserError(
            f"num_actions: expected games with {_MOST_PREFERENCES:,} win probabilities at most in all, got {count:,}; "
            "lower num_actions or num_games"
        )
    if games == "random":
        drawn = [random_games(num_games, num_actions=num_actions, tau=tau, seed=seed) for seed in seeds]
        return PreferenceGame(
            prefs_XAA=torch.cat([game.prefs_XAA for game in drawn]),
            ref_XA=torch.cat([game.ref_XA for game in drawn]),
            tau=tau,
        )
    if games == "cyclic":
        # Away from a uniform reference: on a uniform cycle the start is already the equilibrium.
        ref_XA = torch.linspace(0.0, 1.0, num_actions, dtype=torch.float64).softmax(0)[None]
        return cyclic(num_actions, ref_XA=ref_XA, tau=tau)
    if games == "rps":
        return rock_paper_scissors(tau=tau)
    raise UserError(f"unknown games '{games}'{nearest_or_all(games, ('random', 'cyclic', 'rps'))}")


def _run(
    name: str,
    game: PreferenceGame,
    *,
    lr: float,
    a: float,
    iterations: int,
    progress: Progress | None,
) -> tuple[Tensor, int]:
    base, _, form = name.partition(":")
    if form not in ("", "loss"):
        raise UserError(f"unknown form '{form}' of method '{base}': expected '{base}' or '{base}:loss'")
    if base not in _LOSS and base in method_names():
        raise UserError(f"method '{base}' does not look for this game's equilibrium; try {', '.join(sorted(_LOSS))}")
    load_card(base)

    def report(iteration: int) -> None:
        if progress is not None and (iteration % 50 == 0 or iteration == iterations):
            progress(name, iteration, iterations)

    if base in _EXACT and not form:
        return _run_exact(_EXACT[base], game, a, iterations, report), 2 if base == "nash_mp" else 1
    how = _LOSS[base]
    method = build_method({"name": base, **how.options(game.tau, a)})
    run = run_tabular(
        method,
        game,
        lr=lr if how.lr is None else how.lr(game.tau, a),
        iterations=iterations,
        inner_steps=how.inner_steps,
        optimizer=how.optimizer,
        progress=report,
    )
    inner_steps = method.needs.inner_steps if how.inner_steps is None else how.inner_steps
    return run.gap_IX, method.needs.stages * method.needs.fits * inner_steps


def _run_exact(
    update: ExactUpdate, game: PreferenceGame, a: float, iterations: int, report: Callable[[int], None]
) -> Tensor:
    log_pi_XA = game.ref_XA.log()
    gaps = [game.duality_gap(game.ref_XA)]
    for iteration in range(1, iterations + 1):
        log_pi_XA = update(game, log_pi_XA, a)
        gaps.append(game.duality_gap(log_pi_XA.softmax(-1)))
        report(iteration)
    return torch.stack(gaps)


def _draw(result: ProtocolResult, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    for axes, title, reduce in zip(
        figure.subplots(1, 2, sharey=True),
        ("median game", "worst game"),
        (lambda curve_IX: curve_IX.quantile(0.5, dim=1), lambda curve_IX: curve_IX.amax(1)),
        strict=True,
    ):
        for position, (name, curve_IX) in enumerate(result.gap_curves.items()):
            # Below the rounding error of a gap near 1/2 the curve says nothing more.
            # Some methods are the same update under another name; dashes let the curve below show through.
            style = "-" if 2 * position < len(result.gap_curves) else "--"
            axes.plot(reduce(curve_IX).clamp(min=1e-17).tolist(), style, label=name, linewidth=1.4)
        axes.set_yscale("log")
        axes.set_title(f"{title} of {result.start_gap_X.numel()}", fontsize=10)
        axes.set_xlabel("iteration (egpo and nash_mp: two evaluations each)", fontsize=9)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"duality gap, tau = {result.tau:g}")
    figure.axes[1].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=150)
