"""MaxMin on the text game's two groups, from sampled answers only: each group's mean against the exact optimum.

    python scripts/bench/maxmin.py                   # a table; ten minutes on one core
    python scripts/bench/maxmin.py --modes mirror    # some of them
    python scripts/bench/maxmin.py --json            # the table as one line of JSON

A group's mean is P(y > ref) over all questions, 1/2 at the reference. The exact policy maximises the lower mean less
tau KL; it comes from the convex dual. "way" is the part of the way from the reference to its lower mean that a policy's
lower mean has gone. ``crowd`` is the groups by their share as one oracle: the utilitarian mean.
"""

import argparse
import json
import tempfile
import time

from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PrinterCallback

from alignment.arguments import AlignmentArguments
from alignment.oracles import PanelOracle, SettledOracle
from alignment.textgame import TextGame
from alignment.trainer import PreferenceTrainer

TAU = 0.02
MODES = ("mirror", "group_argmin", "sample_min", "crowd")


def train(text: TextGame, mode: str, *, steps: int) -> tuple[Tensor, float]:
    """The groups' mean utilities [K] under the average of the policy's weights, and the seconds that training took.

    The base is the regression on win differences over tau: a policy gradient of utilities that are far from 1/2 on
    average would be much noisier. What noise is left comes from the reference's answers, hence 16 of them. The average
    is what the theory of alternating play is about.
    """
    is_crowd, panel = mode == "crowd", text.panel()
    oracles = {"crowd": text.oracle()} if is_crowd else dict(zip(panel.names, panel.members, strict=True))
    method = {
        "name": "maxmin",
        "base": {"name": "omd", "tau": TAU},
        "mode": "mirror" if is_crowd else mode,
        # At 0.2 play circles round the optimum: the weights move before the policy has answered.
        "step": 0.05,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = PreferenceTrainer(
            model=text.policy(),
            ref_model=text.ref,
            args=AlignmentArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=30,
                num_completions=8,
                opponent_completions=16,
                max_new_tokens=20,
                average_decay=0.99,
                learning_rate=1e-3,
                lr_scheduler_type="cosine",
                warmup_steps=20,
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=text.rows(),
            processing_class=text.tokenizer,
            # They have no taste for a position: one order says everything.
            oracle=PanelOracle({name: SettledOracle(member) for name, member in oracles.items()}),
            method=method,
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    assert trainer.average is not None
    with trainer.average.in_place(trainer.model):
        policy_XA = text.policy_XA(trainer.model).policy_XA
    return text.panel_game(tau=TAU).group_values(policy_XA), seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default=",".join(MODES), help="names with commas between them")
    parser.add_argument("--steps", type=int, default=700, help="700 unless given")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    modes = options.modes.split(",")
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        parser.error(f"--modes: expected some of {', '.join(MODES)}, got {', '.join(unknown)}")
    text = TextGame.build()
    panel = text.panel_game(tau=TAU)
    start, best = (float(panel.group_values(pi_XA).min()) for pi_XA in (text.ref_XA, panel.maxmin().policy_XA))
    table = Table("mode", *text.panel().names, "exact", "way", "seconds", box=None)
    rows = []
    for mode in modes:
        means_K, seconds = train(text, mode, steps=options.steps)
        way = (float(means_K.min()) - start) / (best - start)
        groups = dict(zip(text.panel().names, means_K.tolist(), strict=True))
        rows.append({"mode": mode, "groups": groups, "exact": best, "way": way, "seconds": round(seconds, 1)})
        table.add_row(mode, *(f"{mean:.4f}" for mean in groups.values()), f"{best:.4f}", f"{way:.1%}", f"{seconds:.0f}")
    if options.json:
        print(json.dumps({"rows": rows}))
    else:
        Console(width=None if Console().is_terminal else 120).print(table)


if __name__ == "__main__":
    main()
