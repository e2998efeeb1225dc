"""All methods on the text game, from sampled answers only: the exact duality gap against oracle calls and seconds.

    python scripts/bench/textgame.py                              # a table; an hour on one core
    python scripts/bench/textgame.py --methods egpo,online_ipo    # some of them
    python scripts/bench/textgame.py --json                       # the table as one line of JSON
    python scripts/bench/textgame.py --folder runs/textgame       # and the curves: JSON for each method, and curves.png
    python scripts/bench/textgame.py --folder runs/textgame --read      # the table of curves that are there
    python scripts/bench/textgame.py --methods dpo --learning-rate 3e-4

Every method has the same budget of questions to the oracle, which has no taste for a position: a pair is asked about in
one order. The gap is that of the method's own game: regularised by tau for those that have a tau, unregularised and of
the average iterate for the others. DPO learns from as many comparisons of answers of the reference, each decided by one
annotator, at the best of five betas. Seconds are of training with its sampling; measuring the gap is not counted.
"""

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaForCausalLM, PrinterCallback, TrainerCallback

from alignment.arguments import AlignmentArguments
from alignment.data import EncodedRow, encode_rows, stop_token_ids
from alignment.methods import build_method
from alignment.oracles.base import OneOrder, SettledOracle
from alignment.policies import CausalLMPolicy
from alignment.rounds import answer_prompts, compare_answers
from alignment.seeds import seeds_of
from alignment.textgame import TextGame, draw_rows
from alignment.trainer import PreferenceTrainer

TAU = 0.04
BUDGET = 720_000
BETAS = (0.1, 0.5, 1.0, 2.0, 5.0)
POINTS = 20
# Answers to a question, and the pairs among them; the opponent's answers to it in an iteration, where there is one.
ANSWERS, PAIRS, OPPONENTS = 8, 28, 4
# Of the reference in a mixture: the exact fixed point of nash_md and ipo_md has 2.2 % of the gap at 0.125, 0.3 % here.
MIX = 0.05
# Rounds, and their steps. Exact rounds leave 0.4 % of the regularised gap at a mirror step of 0.2 (2.4 % at 0.1, 1.0 %
# at 0.3), and 28 % (sppo) and 19 % (onpo) of the unregularised one at an eta of 6 (76 % and 64 % at 2).
ROUNDS, STEP, ETA = 25, 0.2, 6.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How a method plays; common arguments stand in :func:`arguments`.

    Attributes:
        method: the recipe's ``method:`` block.
        tau: of the game that the gap is measured in; 0 takes the average iterate.
        has_opponent: whether answers are compared with those of an opponent, and not among themselves.
        temperature: of the sampler.
        rounds: of an iterative method; 0 for an online one.
        passes: over the data of a round, in each fit.
        learning_rate: at its highest.
        decay: of the learning rate; none for an average of iterates, in which late ones would stand still and count.
    """

    method: Mapping[str, Any]
    tau: float = TAU
    has_opponent: bool = False
    temperature: float = 1.0
    rounds: int = 0
    passes: int = 2
    learning_rate: float = 5e-4
    decay: str = "cosine"


SETTINGS: dict[str, Setting] = {
    "online_ipo": Setting(method={"name": "online_ipo", "tau": TAU}),
    "ipo_md": Setting(method={"name": "ipo_md", "tau": TAU, "mix": MIX}),
    "nash_md": Setting(method={"name": "nash_md", "tau": TAU, "mix": MIX}, has_opponent=True, learning_rate=1e-3),
    "egpo": Setting(method={"name": "egpo", "tau": TAU}, has_opponent=True, temperature=1.2, learning_rate=1e-3),
    "nash_mp": Setting(method={"name": "nash_mp", "tau": TAU, "eta": 1.0, "inner_steps": 20}, has_opponent=True),
    "nash_prox": Setting(method={"name": "nash_prox", "tau": TAU, "eta": 1.0, "inner_steps": 20}, has_opponent=True),
    "inpo": Setting(method={"name": "inpo", "tau": TAU, "eta": TAU / STEP}, rounds=ROUNDS, learning_rate=1e-3),
    "mnpo": Setting(
        method={
            "name": "mnpo",
            "eta": TAU / STEP,
            "ref_weight": STEP,
            "history_weights": [0.75 * (1 - STEP), 0.25 * (1 - STEP)],
        },
        rounds=ROUNDS,
        learning_rate=1e-3,
    ),
    "spo": Setting(method={"name": "spo", "kappa_ref": TAU}),
    "spo_average": Setting(
        method={"name": "spo", "kappa_ref": 0.0}, tau=0.0, learning_rate=2.5e-4, decay="constant_with_warmup"
    ),
    "sppo": Setting(method={"name": "sppo", "eta": ETA}, tau=0.0, rounds=ROUNDS, learning_rate=1e-3),
    "onpo": Setting(method={"name": "onpo", "eta": ETA}, tau=0.0, rounds=ROUNDS, learning_rate=1e-3),
    "online_dpo": Setting(method={"name": "online_dpo", "beta": 1.0}),
    "dpo": Setting(method={"name": "dpo", "beta": BETAS[0]}),
}


class CountedOracle:
    """Passes questions on and counts them."""

    def __init__(self, oracle: Any) -> None:
        self.oracle, self.calls = oracle, 0

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        self.calls += len(prompts)
        return self.oracle.prefer(prompts, left, right)


class Curve(TrainerCallback):
    """Measures the gap now and then; the clock stands still meanwhile."""

    def __init__(self, text: TextGame, tau: float, oracle: CountedOracle, *, every: int) -> None:
        self.text, self.oracle, self.every = text, oracle, every
        self.game, self.is_average = text.game(tau=tau), tau == 0.0
        self.policies: list[Tensor] = []
        self.points: list[dict[str, float]] = []
        self.seconds, self.since = 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.measure(kwargs["model"])
        self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.seconds += time.perf_counter() - self.since
            self.measure(kwargs["model"])
            self.since = time.perf_counter()

    def measure(self, model: Any) -> None:
        """Add a point."""
        found = self.text.policy_XA(model)
        self.policies.append(found.policy_XA)
        policy_XA = torch.stack(self.policies).mean(0) if self.is_average else found.policy_XA
        self.points.append(
            {
                "gap": float(self.game.duality_gap(policy_XA).mean()),
                "outside": float(found.outside_X.mean()),
                "oracle_calls": self.oracle.calls,
                "seconds": round(self.seconds, 1),
            }
        )


def arguments(folder: str, setting: Setting, **changes: Any) -> AlignmentArguments:
    """The common arguments: a step asks every question once and takes eight answers to each."""
    settings: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": 30,
        "num_completions": ANSWERS,
        "opponent_completions": OPPONENTS // build_method(setting.method).needs.stages,
        "temperature": setting.temperature,
        "max_new_tokens": 20,
        "max_prompt_length": 32,
        "max_completion_length": 32,
        "learning_rate": setting.learning_rate,
        "lr_scheduler_type": setting.decay,
        "warmup_steps": 20,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return AlignmentArguments(**settings | changes)


def play_online(text: TextGame, setting: Setting, folder: str, budget: int) -> list[dict[str, float]]:
    """The curve of a method that samples in every step."""
    oracle = CountedOracle(text.oracle())
    per_question = ANSWERS * OPPONENTS if setting.has_opponent else PAIRS
    steps = budget // (30 * per_question)
    stages = build_method(setting.method).needs.stages
    trainer = PreferenceTrainer(
        model=text.policy(),
        ref_model=text.ref,
        args=arguments(folder, setting, max_steps=steps),
        train_dataset=text.rows(),
        processing_class=text.tokenizer,
        oracle=SettledOracle(OneOrder(oracle)),
        method=setting.method,
    )
    curve = Curve(text, setting.tau, oracle, every=max(1, steps // POINTS) * stages)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(curve)
    trainer.train()
    curve.measure(trainer.model)
    return curve.points


def play_rounds(text: TextGame, setting: Setting, folder: str, budget: int) -> list[dict[str, float]]:
    """The curve of an iterative method: each round is a data set of the policy's own answers.

    A method of two fits keeps a second policy, the centre: the first fit moves it, the second starts from there.
    """
    oracle = CountedOracle(text.oracle())
    copies = budget // (30 * PAIRS * setting.rounds)
    questions = encode_rows(text.rows(), text.tokenizer, max_prompt_length=32, max_completion_length=32).rows * copies
    needs = build_method(setting.method).needs
    curve = Curve(text, setting.tau, oracle, every=1)
    model = centre = text.policy()
    past: list[LlamaForCausalLM] = []
    curve.measure(model)
    for number in range(setting.rounds):
        began = time.perf_counter()
        policy = CausalLMPolicy(
            model, text.tokenizer, stop_token_ids=stop_token_ids(text.tokenizer), temperature=1.0, max_new_tokens=20
        )
        seeds = seeds_of(len(questions), number)
        answers = answer_prompts(policy, questions, num_completions=ANSWERS, batch_size=120, seeds=seeds)
        asked, is_kept = SettledOracle(OneOrder(oracle)), needs.feedback == "wins"
        rows = compare_answers(answers, asked, keep_alike=is_kept, batch_size=120, seeds=seeds).rows
        args = arguments(folder, setting, max_steps=setting.passes * copies, seed=number, warmup_steps=2)
        start, centre = centre, fit(text, setting, args, rows, start=centre, past=past)
        model = centre if needs.fits == 1 else fit(text, setting, args, rows, start=centre, past=past)
        past = [start, *past][:2]
        curve.seconds += time.perf_counter() - began
        curve.measure(model)
    return curve.points


def fit(
    text: TextGame,
    setting: Setting,
    args: AlignmentArguments,
    rows: Sequence[EncodedRow],
    *,
    start: LlamaForCausalLM,
    past: Sequence[LlamaForCausalLM],
) -> LlamaForCausalLM:
    """The policy that a round's data makes of ``start``, which is left as it was and is the anchor ``prev``."""
    model = copy.deepcopy(start).train().requires_grad_(True)
    trainer = PreferenceTrainer(
        model=model,
        ref_model=text.ref,
        past_models=past,
        args=args,
        train_dataset=rows,
        processing_class=text.tokenizer,
        method=setting.method,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


def play_dpo(text: TextGame, setting: Setting, folder: str, budget: int) -> list[dict[str, float]]:
    """The curve of DPO at the beta that ends lowest; a comparison is a question."""
    # Sixteen answers a row, each of their 120 pairs decided: as many answers a step as the other methods read.
    steps = budget // (15 * 120)
    rows = draw_rows(text, "comparisons", 15 * steps)
    encoded = encode_rows(rows, text.tokenizer, max_prompt_length=32, max_completion_length=32).rows
    curves = []
    for beta in BETAS:
        curve = Curve(text, setting.tau, CountedOracle(text.oracle()), every=max(1, steps // POINTS))
        trainer = PreferenceTrainer(
            model=text.policy(),
            ref_model=text.ref,
            args=arguments(folder, setting, max_steps=steps, per_device_train_batch_size=15),
            train_dataset=encoded,
            processing_class=text.tokenizer,
            method={**setting.method, "beta": beta},
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(curve)
        trainer.train()
        print(
            f"dpo beta {beta:g}: {curve.points[-1]['gap'] / curve.points[0]['gap']:.1%} of the gap left",
            file=sys.stderr,
        )
        curve.points[-1]["oracle_calls"] = budget
        curves.append(curve.points)
    return min(curves, key=lambda points: points[-1]["gap"])


def play(
    text: TextGame, name: str, *, budget: int = BUDGET, learning_rate: float | None = None
) -> list[dict[str, float]]:
    """The curve of a method, at its own learning rate or at another."""
    setting = SETTINGS[name]
    if learning_rate is not None:
        setting = dataclasses.replace(setting, learning_rate=learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        if name == "dpo":
            return play_dpo(text, setting, folder, budget)
        return (play_rounds if setting.rounds else play_online)(text, setting, folder, budget)


def draw(folder: Path) -> None:
    """Draw all curves in a folder, those of earlier runs as well: what is left of the gap against calls and seconds."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    colours = colormaps["tab20"]
    for index, name in enumerate(SETTINGS):
        path = folder / f"{name}.json"
        # DPO's comparisons are bought before it trains: it has no course, only an end.
        if not path.exists() or name == "dpo":
            continue
        points = json.loads(path.read_text())
        left = [point["gap"] / points[0]["gap"] for point in points]
        style = "-" if SETTINGS[name].tau else "--"
        for axis, key, unit in zip(axes, ("oracle_calls", "seconds"), (1e3, 1.0), strict=True):
            axis.plot([point[key] / unit for point in points], left, style, color=colours(index), label=name)
    for axis, label in zip(axes, ("oracle calls, thousands", "seconds"), strict=True):
        axis.set(xlabel=label, yscale="log")
        axis.grid(which="both", alpha=0.3)
    axes[0].set_ylabel("part of the duality gap that is left")
    axes[1].legend(fontsize=8, ncols=2)
    figure.savefig(folder / "curves.png", dpi=120)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", help="names with commas between them; default: all, with --read those in the folder"
    )
    parser.add_argument("--budget", type=int, default=BUDGET, help="questions to the oracle for each method")
    parser.add_argument("--learning-rate", type=float, help="in place of the methods' own")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--folder", type=Path, help="where the curves go")
    parser.add_argument("--read", action="store_true", help="play nothing: the table of the curves in the folder")
    options = parser.parse_args()
    if options.read and not options.folder:
        parser.error("--read: expected --folder with the curves of earlier runs, got none")
    played = [name for name in SETTINGS if not options.read or (options.folder / f"{name}.json").exists()]
    names = options.methods.split(",") if options.methods else played
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        parser.error(f"--methods: expected some of {', '.join(SETTINGS)}, got {', '.join(unknown)}")
    if options.read:
        curves = {name: json.loads((options.folder / f"{name}.json").read_text()) for name in names}
    else:
        curves = run(names, options.budget, options.learning_rate, options.folder)
    if options.json:
        print(json.dumps({"rows": [row(name, points) for name, points in curves.items()]}))
    else:
        Console(width=None if Console().is_terminal else 120).print(table(curves))


def run(
    names: Sequence[str], budget: int, learning_rate: float | None, folder: Path | None
) -> dict[str, list[dict[str, float]]]:
    """The curves of methods, one after the other."""
    text = TextGame.build()
    curves = {}
    for name in names:
        curves[name] = play(text, name, budget=budget, learning_rate=learning_rate)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text(json.dumps(curves[name]) + "\n")
            draw(folder)
    return curves


def row(name: str, points: list[dict[str, float]]) -> dict[str, Any]:
    """The ends of a curve."""
    start, end = points[0], points[-1]
    return {
        "method": name,
        "gap_start": start["gap"],
        "gap_end": end["gap"],
        "oracle_calls": end["oracle_calls"],
        "seconds": end["seconds"],
    }


def table(curves: Mapping[str, list[dict[str, float]]]) -> Table:
    """The ends of all curves."""
    shown = Table("method", "gap, start", "gap, end", "left", "left at 300 s", "outside", "calls", "seconds", box=None)
    for name, points in curves.items():
        start, end = points[0], points[-1]
        early = [point for point in points if point["seconds"] <= 300][-1]
        shown.add_row(
            name,
            f"{start['gap']:.4f}",
            f"{end['gap']:.4f}",
            f"{end['gap'] / start['gap']:.1%}",
            f"{early['gap'] / start['gap']:.1%}",
            f"{end['outside']:.1%}",
            f"{end['oracle_calls']:,.0f}",
            f"{end['seconds']:.0f}",
        )
    return shown


if __name__ == "__main__":
    main()
