"""Seconds and certified gaps of the exact equilibrium solver.

    python scripts/bench/games.py                 # a table; under two minutes on two cores
    python scripts/bench/games.py --json          # the same as one line of JSON
    python scripts/bench/games.py --highs 1000    # the linear programme at full size as well: some 20 s more

The rows at the full size show ``PreferenceGame.solve`` on matrices of several characters. The baselines are what one
would write first: extragradient until the same gap or a time limit, and HiGHS on the unregularised game.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.optimize import linprog

from alignment.games import PreferenceGame, bradley_terry, cyclic, extragradient_update, random_games

TAUS = (0.1, 0.01, 0.001, 0.0)
EXTRAGRADIENT_LIMIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Row:
    solver: str
    game: str
    num_actions: int
    tau: float
    seconds: float
    gap: float
    steps: int


def games(num_actions: int) -> dict[str, PreferenceGame]:
    """One context each; ``tau`` is set by the caller."""
    plain = random_games(1, num_actions=num_actions, tau=1.0, seed=0)
    tournament_XAA = 0.5 + 0.5 * (plain.prefs_XAA - 0.5).sign()
    skills_XA = 5.0 * torch.randn(1, num_actions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranked = bradley_terry(skills_XA, plain.ref_XA, tau=1.0)
    cycle = cyclic(num_actions, ref_XA=plain.ref_XA, tau=1.0)
    extreme_XA = (30.0 * plain.ref_XA.log()).clamp(min=-600.0).softmax(-1)
    order_XAA = 0.5 + 0.5 * (torch.ones(num_actions, num_actions, dtype=torch.float64).triu(1)[None])
    order_XAA = order_XAA - order_XAA.mT + 0.5
    order_XAA[:, 0, -1], order_XAA[:, -1, 0] = 0.0, 1.0
    return {
        "random": plain,
        "0/1 tournament": PreferenceGame(prefs_XAA=tournament_XAA, ref_XA=plain.ref_XA, tau=1.0),
        "0/1 tournament, extreme ref": PreferenceGame(prefs_XAA=tournament_XAA, ref_XA=extreme_XA, tau=1.0),
        "cycle": cycle,
        "cycle, extreme ref": cycle.with_ref(extreme_XA),
        "Bradley-Terry + .001 cycle": PreferenceGame(
            prefs_XAA=0.999 * ranked.prefs_XAA + 0.001 * cycle.prefs_XAA, ref_XA=plain.ref_XA, tau=1.0
        ),
        "order with one upset": PreferenceGame(prefs_XAA=order_XAA, ref_XA=plain.ref_XA, tau=1.0),
    }


def time_solve(num_actions: int) -> Iterator[Row]:
    for name, game in games(num_actions).items():
        for tau in TAUS:
            start = time.perf_counter()
            solution = game.with_tau(tau).solve(1e-10)
            yield Row(
                solver="solve",
                game=name,
                num_actions=num_actions,
                tau=tau,
                seconds=time.perf_counter() - start,
                gap=float(solution.gap_X),
                steps=int(solution.iterations_X),
            )


def time_extragradient(num_actions: int) -> Iterator[Row]:
    """The step 2 tau / (1 + 2 tau), for which a rate is stated; the gap is looked at every 50 steps."""
    for name in ("random", "0/1 tournament"):
        for tau in (0.1, 0.01, 0.001):
            game = games(num_actions)[name].with_tau(tau)
            log_pi_XA, gap, steps = game.ref_XA.log(), math.inf, 0
            start = time.perf_counter()
            while gap > 1e-10 and time.perf_counter() - start < EXTRAGRADIENT_LIMIT_S:
                for _ in range(50):
                    log_pi_XA = extragradient_update(game, log_pi_XA, a=2.0 * tau / (1.0 + 2.0 * tau))
                steps += 50
                gap = float(game.duality_gap(log_pi_XA.exp()))
            yield Row(
                solver="extragradient",
                game=name,
                num_actions=num_actions,
                tau=tau,
                seconds=time.perf_counter() - start,
                gap=gap,
                steps=steps,
            )


def time_highs(num_actions: int) -> Iterator[Row]:
    for name in ("random", "0/1 tournament"):
        game = games(num_actions)[name].with_tau(0.0)
        skew = (game.prefs_XAA[0] - 0.5).numpy()
        start = time.perf_counter()
        answer = linprog(
            np.append(np.zeros(num_actions), 1.0),
            A_ub=np.hstack([skew, -np.ones((num_actions, 1))]),
            b_ub=np.zeros(num_actions),
            A_eq=np.append(np.ones(num_actions), 0.0)[None],
            b_eq=[1.0],
            bounds=[(0.0, None)] * num_actions + [(None, None)],
            method="highs",
        )
        seconds = time.perf_counter() - start
        policy_XA = torch.from_numpy(np.maximum(answer.x[:-1], 0.0))[None]
        gap = float(game.duality_gap(policy_XA / policy_XA.sum()))
        yield Row(
            solver="HiGHS",
            game=name,
            num_actions=num_actions,
            tau=0.0,
            seconds=seconds,
            gap=gap,
            steps=int(answer.nit),
        )


def time_commands() -> Iterator[Row]:
    """The protocol of `alignment game` with all six methods at tau 0.01, and the start of two commands."""
    arguments = ["game", "--games", "random", "--methods", "egpo,omd,online_ipo,nash_md,nash_mp,inpo", "--tau", "0.01"]
    with tempfile.TemporaryDirectory() as folder:
        for name, words in (
            ("alignment --help", ["--help"]),
            ("alignment methods", ["methods"]),
            ("alignment game", [*arguments, "--seed", "42", "--output-dir", folder]),
        ):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "alignment", *words], check=True, capture_output=True)
            is_game = words[0] == "game"
            yield Row(
                solver="command",
                game=name,
                num_actions=10 if is_game else 0,
                tau=0.01 if is_game else math.nan,
                seconds=time.perf_counter() - started,
                gap=math.nan,
                steps=5000 if is_game else 0,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the exact equilibrium solver.")
    parser.add_argument("--actions", type=int, default=1000, help="size of the solver's games")
    parser.add_argument("--baseline-actions", type=int, default=300, help="size of the extragradient games")
    parser.add_argument("--highs", type=int, default=300, help="size of the linear programmes (1000 takes some 20 s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    # The first call of every kernel pays for its loading.
    random_games(1, num_actions=50, tau=0.1, seed=0).solve()
    parts: list[Callable[[], Iterator[Row]]] = [
        lambda: time_solve(arguments.actions),
        lambda: time_extragradient(arguments.baseline_actions),
        lambda: time_highs(arguments.highs),
        time_commands,
    ]
    rows = []
    if not arguments.json:
        print(f"{'solver':14s} {'game':28s} {'actions':>7s} {'tau':>6s} {'seconds':>8s} {'gap':>9s} {'steps':>6s}")
    for part in parts:
        for row in part():
            rows.append(row)
            if not arguments.json:
                print(
                    f"{row.solver:14s} {row.game:28s} {row.num_actions:7d} {row.tau:6g} {row.seconds:8.3f} "
                    f"{row.gap:9.1e} {row.steps:6d}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps({"torch_threads": torch.get_num_threads(), "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
