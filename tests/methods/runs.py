"""How the contract test trains each method on a game, and how it decides that the declared solution was reached.

A run ends within ``TOLERANCE`` of the exact answer or the check fails; the answers come from ``games`` (equilibria),
from a closed form (Bradley-Terry), or from SciPy (``expected_loss`` of the method's own test module).
"""

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from alignment.games import PanelGame, PreferenceGame, bradley_terry, kl_divergence
from alignment.methods import build_method
from alignment.tabular import TabularRun, run_tabular
from alignment.types import Method
from tests.methods.problem import Problem

# A sharp cycle, far from a reference that is not uniform: on gentle games every method looks alike.
SHARP_CYCLE = torch.tensor(
    [[[0.5, 0.95, 0.1, 0.6], [0.05, 0.5, 0.9, 0.3], [0.9, 0.1, 0.5, 0.8], [0.4, 0.7, 0.2, 0.5]]], dtype=torch.float64
)
# Entries inside (0.1, 0.9), so that corrections for label noise stay bounded.
CYCLE = torch.tensor(
    [[[0.5, 0.85, 0.3, 0.8], [0.15, 0.5, 0.85, 0.6], [0.7, 0.15, 0.5, 0.8], [0.2, 0.4, 0.2, 0.5]]], dtype=torch.float64
)
REF = torch.tensor([[0.35, 0.3, 0.2, 0.15]], dtype=torch.float64)
SAMPLER = torch.tensor([[0.2, 0.3, 0.15, 0.35]], dtype=torch.float64)
REWARDS = torch.tensor([[1.0, 0.2, -0.5, 0.6]], dtype=torch.float64)
LENGTHS = torch.tensor([[1.0, 2.0, 1.0, 3.0]], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Arguments of ``run_tabular``. A policy gradient takes natural steps, with which theory speaks of it."""

    lr: float
    iterations: int
    inner_steps: int | None = None
    optimizer: Any = "sgd"
    more: dict[str, Any] = field(default_factory=dict)

    def __call__(self, method: Method, game: Any, **arguments: Any) -> TabularRun:
        return run_tabular(
            method,
            game,
            lr=self.lr,
            iterations=self.iterations,
            inner_steps=self.inner_steps,
            optimizer=self.optimizer,
            **self.more,
            **arguments,
        )


# Newton-like: a pair regression has Hessian 4 in the metric of its sampler.
ROUNDS = Run(lr=0.25, iterations=100, inner_steps=8, optimizer="natural")
POLICY_GRADIENT = Run(lr=0.3, iterations=400, optimizer="natural")
OFFLINE = Run(lr=0.5, iterations=800, optimizer="natural")

RUNS: dict[str, Run] = {
    "egpo": Run(lr=0.2, iterations=150),
    "omd": Run(lr=0.2, iterations=150),
    "online_ipo": Run(lr=0.15, iterations=400),
    "ipo_md": Run(lr=0.15, iterations=800),
    "online_dpo": Run(lr=1.0, iterations=600),
    "inpo": ROUNDS,
    "mnpo": ROUNDS,
    "sppo": Run(lr=0.5, iterations=3000, inner_steps=1, optimizer="natural"),
    "onpo": Run(lr=0.25, iterations=600, inner_steps=4, optimizer="natural"),
    "nash_md": POLICY_GRADIENT,
    "nash_mp": Run(lr=0.5, iterations=150, inner_steps=10, optimizer="natural"),
    "nash_prox": Run(lr=0.5, iterations=60, inner_steps=10, optimizer="natural"),
    "spo": Run(lr=0.2, iterations=2000, optimizer="natural"),
    "maxmin": Run(lr=0.5, iterations=1500, optimizer="natural"),
    # Quartic far out, or without a minimum: short steps.
    "sppo_hard": Run(lr=0.1, iterations=800, optimizer="natural"),
    "apo_down": Run(lr=0.5, iterations=200),
    # Piecewise linear: constant steps would orbit the kink.
    "hinge": Run(lr=0.01, iterations=1500, optimizer="adam"),
    "slic": Run(lr=0.01, iterations=1500, optimizer="adam"),
    "dpop": Run(lr=0.01, iterations=1500, optimizer="adam"),
    "aot": Run(lr=0.2, iterations=300, more={"samples": 64, "seed": 0}),
}


def load_tests(name: str) -> ModuleType:
    """The test module of a method, for its ``OPTIONS`` and ``expected_loss``."""
    return importlib.import_module(f"tests.methods.test_{name}")


def build(name: str) -> Method:
    """The method with the options of its test module."""
    return build_method({"name": name, **load_tests(name).OPTIONS})


def check_solution(name: str, method: Method) -> None:
    """Train the method on a game and assert that it reaches what its card declares."""
    check = {
        "kl_nash": _check_kl_nash,
        "nash": _check_nash,
        "bt_optimum": _check_bt_optimum,
        "numeric": _check_numeric,
        "maxmin": _check_maxmin,
        "none": _check_improves,
    }[method.solution]
    check(name, method)


def _strength(options: dict[str, Any]) -> float:
    """KL strength of the game whose equilibrium the method looks for."""
    if "tau" in options:
        return float(options["tau"])
    return float(options["kappa_ref"] if "kappa_ref" in options else options["ref_weight"] * options["eta"])


def _check_kl_nash(name: str, method: Method) -> None:
    game = PreferenceGame(prefs_XAA=SHARP_CYCLE, ref_XA=REF, tau=_strength(load_tests(name).OPTIONS))
    run = RUNS[name](method, game)
    start, end = float(run.gap_IX[0].max()), float(run.gap_IX[-1].max())
    assert start > 1e-2, "the game must be worth playing"
    assert end < 1e-6 * start, f"gap {end:.2e} of {start:.2e}"


def _check_nash(name: str, method: Method) -> None:
    game = PreferenceGame(prefs_XAA=SHARP_CYCLE, ref_XA=REF, tau=0.0)
    run = RUNS[name](method, game)
    gap_IX = run.average_gap_IX if method.iterate == "average" else run.gap_IX
    start, end = float(gap_IX[0].max()), float(gap_IX[-1].max())
    # Averages converge like 1/T: a few per cent is what these iterations give; a wrong sign ends above the start.
    assert end < 0.08 * start, f"gap {end:.2e} of {start:.2e}"


def _check_bt_optimum(name: str, method: Method) -> None:
    game = bradley_terry(REWARDS, REF, tau=0.0)
    run = RUNS.get(name, OFFLINE)(method, game, behaviour_XA=SAMPLER if method.needs.schedule == "offline" else None)
    optimum_XA = (REF.log() + REWARDS / method.beta).softmax(-1)  # type: ignore[attr-defined]
    assert float(kl_divergence(optimum_XA, run.policy_XA).max()) < 1e-8


def _check_numeric(name: str, method: Method) -> None:
    module = load_tests(name)
    game = PreferenceGame(prefs_XAA=CYCLE, ref_XA=REF, tau=0.0)
    if method.needs.schedule == "online":
        run = RUNS[name](method, game)
        assert float(kl_divergence(module.fixed_point(game, method), run.policy_XA).max()) < 1e-8
        return
    run = RUNS.get(name, OFFLINE)(method, game, behaviour_XA=SAMPLER, lengths_XA=LENGTHS)
    problem = Problem(
        prefs_AA=CYCLE[0].numpy(), ref_A=REF[0].numpy(), sampler_A=SAMPLER[0].numpy(), lengths_A=LENGTHS[0].numpy()
    )
    reached = module.expected_loss(run.policy_XA[0].log().numpy(), problem)
    best = scipy_minimum(module, problem)
    start = module.expected_loss(REF[0].log().numpy(), problem)
    assert start - best > 1e-3, "the problem must be worth solving"
    # Relative to what there was to gain; non-smooth losses end in a step-sized neighbourhood of the minimum.
    assert reached - best < 1e-2 * (start - best), f"reached {reached:.6f}, best {best:.6f}, start {start:.6f}"


def scipy_minimum(module: ModuleType, problem: Problem) -> float:
    """Smallest expected loss over policies that SciPy finds from several starts."""

    def objective(logits: np.ndarray) -> float:
        logits = np.append(logits, 0.0)
        return float(module.expected_loss(logits - np.logaddexp.reduce(logits), problem))

    generator = np.random.default_rng(0)
    starts = [np.zeros(len(problem.ref_A) - 1), *generator.normal(size=(3, len(problem.ref_A) - 1))]
    smooth = (minimize(objective, start, method="BFGS").fun for start in starts)
    rough = (
        minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).fun
        for start in starts
    )
    return min(*smooth, *rough)


def _check_maxmin(name: str, method: Method) -> None:
    # Two groups that want opposite extremes; a compromise that the reference rarely says serves both.
    rewards_KXA = torch.tensor([[[2.0, 1.6, -2.0]], [[-2.0, 1.8, 2.5]]], dtype=torch.float64)
    game = PanelGame(
        prefs_KXAA=(rewards_KXA[..., :, None] - rewards_KXA[..., None, :]).sigmoid(),
        ref_XA=torch.tensor([[0.55, 0.1, 0.35]], dtype=torch.float64),
        tau=_strength(load_tests(name).OPTIONS["base"]),
    )
    run = RUNS[name](method, game)
    solution = game.maxmin(1e-9)
    start, end = float(game.objective(game.ref_XA)), float(game.objective(run.average_XA))
    assert solution.value - start > 1e-2
    assert solution.value - end < 0.02 * (solution.value - start), f"objective {end:.4f} of {solution.value:.4f}"


def _check_improves(name: str, method: Method) -> None:
    assert method.no_solution  # type: ignore[attr-defined]
    game = bradley_terry(REWARDS, REF, tau=0.0)
    run = RUNS.get(name, OFFLINE)(method, game, behaviour_XA=SAMPLER)
    win_rate = float((run.policy_XA * game.win_probability(REF)).sum())
    assert win_rate > 0.55, f"win rate against the reference {win_rate:.3f}"


def reaches_solution(name: str, method: Method) -> bool:
    """Whether ``check_solution`` passes; for mutants, which may also fail by an error."""
    try:
        check_solution(name, method)
    except (AssertionError, ArithmeticError, ValueError, RuntimeError):
        return False
    return True


__all__ = ["Tensor", "build", "check_solution", "load_tests", "reaches_solution"]
