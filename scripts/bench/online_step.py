"""Where the time of an online step goes: generation, oracle, model, optimizer, and all that is ours.

    python scripts/bench/online_step.py                        # 15.7M parameters, prompts of 256 tokens, 64 new ones
    python scripts/bench/online_step.py --method nash_mp       # another method
    python scripts/bench/online_step.py --textgame             # the text game's 64-wide model, where overhead shows
    python scripts/bench/online_step.py --json                 # one line of JSON

The oracle is a rule that costs next to nothing, the vocabulary is words, and weights are random, so that answers have
their full length. A step is an iteration: of EGPO, both stages. ``outside`` is the share of a step outside generation,
oracle and the model's forward and backward; the optimizer (with clipping, zeroing and, of EGPO, the copies of the
look-ahead) is shown apart and counted in ``outside_with_optimizer``. The library has no timers: a few of its functions
are wrapped here.
"""

import argparse
import functools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from steps import LEARNING_RATE, wall
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

import alignment.trainer
from alignment.anchors import AnchorSet
from alignment.arguments import AlignmentArguments
from alignment.data import Row, Turn
from alignment.oracles import PanelOracle, RuleOracle
from alignment.oracles.rules import find_rule
from alignment.policies import CausalLMPolicy
from alignment.textgame import TextGame
from alignment.tiny import tiny_model, word_level_tokenizer
from alignment.trainer import PreferenceTrainer
from alignment.types import Oracle

METHODS: dict[str, dict[str, Any]] = {
    "egpo": {"tau": 0.1},
    "omd": {"tau": 0.1},
    "online_ipo": {"tau": 0.1},
    "ipo_md": {"tau": 0.1, "mix": 0.125},
    "online_dpo": {"beta": 0.1},
    "nash_md": {"tau": 0.008, "mix": 0.125},
    "nash_mp": {"tau": 0.01, "eta": 0.5},
    "nash_prox": {"tau": 0.01, "eta": 0.5},
    "spo": {"kappa_ref": 0.05, "clip": 0.2},
    "maxmin": {"base": {"name": "spo", "kappa_ref": 0.05}},
}
MODEL = ("generation", "oracle", "anchors", "forward", "backward")
PARTS = (*MODEL, "optimizer", "rest")


class Stopwatch:
    """Seconds by part; a part inside another is taken out of it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[tuple[str, float]] = []

    def wrapped(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(part):
                return function(*arguments, **options)

        return timed

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside for ``name``."""
        self._turn()
        self._open.append((name, wall()))
        yield
        self._turn()
        self._open.pop()
        if self._open:
            self._open[-1] = (self._open[-1][0], wall())

    def _turn(self) -> None:
        """Credit the innermost part up to now."""
        if self._open:
            name, since = self._open[-1]
            now = wall()
            self.seconds[name] += now - since
            self._open[-1] = (name, now)


class Steps(TrainerCallback):
    """Starts the clock after the warm-up and stops it after the last step."""

    def __init__(self, watch: Stopwatch, *, warm_up: int) -> None:
        self.watch, self.warm_up = watch, warm_up
        self.start, self.end = 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warm_up:
            self.watch.seconds.clear()
            self.start = wall()
        self.end = wall()


def word_tokenizer(num_tokens: int) -> PreTrainedTokenizerFast:
    """As many tokens as asked for, special ones among them."""
    num_special = len(word_level_tokenizer(()))
    return word_level_tokenizer(f"w{number:06d}" for number in range(num_tokens - num_special))


def word_rows(tokenizer: PreTrainedTokenizerFast, *, prompts: int, length: int) -> tuple[Row, ...]:
    """Prompts of random words, of so many tokens each."""
    num_special = len(word_level_tokenizer(()))
    # The template adds four tokens: begin, user, end of turn, assistant.
    size = (prompts, length - 4)
    ids = torch.randint(num_special, len(tokenizer), size, generator=torch.Generator().manual_seed(0)).tolist()
    texts = [" ".join(tokenizer.convert_ids_to_tokens(row)) for row in ids]
    return tuple(Row(prompt=(Turn("user", text),), source=f"bench:{i + 1}") for i, text in enumerate(texts))


def word_setting(options: argparse.Namespace) -> dict[str, Any]:
    """Model, prompts and oracle of the sizes that were asked for."""
    tokenizer = word_tokenizer(options.vocabulary)
    model = tiny_model(
        tokenizer,
        hidden_size=options.width,
        num_layers=options.layers,
        num_heads=options.heads,
        intermediate_size=options.intermediate,
        max_position_embeddings=options.prompt_tokens + options.new_tokens,
    )
    rows = word_rows(tokenizer, prompts=options.prompts, length=options.prompt_tokens)
    return {"model": model, "processing_class": tokenizer, "train_dataset": rows, "oracle": rule("shorter")}


def textgame_setting() -> dict[str, Any]:
    """The text game's supervised model, its questions and its oracle."""
    text = TextGame.build()
    return {
        "model": text.policy(),
        "processing_class": text.tokenizer,
        "train_dataset": text.rows(),
        "oracle": text.oracle(),
    }


def rule(name: str) -> Oracle:
    """A rule by its name."""
    return RuleOracle(find_rule(name))


def measure(setting: dict[str, Any], options: argparse.Namespace, **training: Any) -> dict[str, Any]:
    """Seconds of an iteration by part, over the iterations after the warm-up.

    Args:
        setting: model, tokenizer, prompts and oracle, and whatever else the trainer takes.
        options: sizes, and the method.
        training: more of :class:`AlignmentArguments`.
    """
    watch = Stopwatch()
    if options.method == "maxmin":
        setting["oracle"] = PanelOracle({"a": setting["oracle"], "b": rule("paper_scissors_stone")})
    members = setting["oracle"].members if isinstance(setting["oracle"], PanelOracle) else (setting["oracle"],)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trainer = PreferenceTrainer(
            args=AlignmentArguments(
                output_dir=folder,
                per_device_train_batch_size=len(setting["train_dataset"]),
                num_completions=options.completions,
                max_new_tokens=options.new_tokens,
                max_prompt_length=options.prompt_tokens,
                max_steps=options.warm_up + options.steps,
                learning_rate=LEARNING_RATE,
                logging_steps=1,
                save_strategy="no",
                disable_tqdm=True,
                **training,
            ),
            method={"name": options.method, **METHODS[options.method]},
            **setting,
        )
        trainer.remove_callback(PrinterCallback)
        steps = Steps(watch, warm_up=options.warm_up * trainer.needs.stages)
        trainer.add_callback(steps)
        trainer.create_optimizer()
        for target, name, part in (
            (CausalLMPolicy, "sample_by_seeds", "generation"),
            *((member, "prefer", "oracle") for member in members),
            (AnchorSet, "score", "anchors"),
            (alignment.trainer, "score", "forward"),
            (trainer.accelerator, "backward", "backward"),
            (trainer.accelerator, "clip_grad_norm_", "optimizer"),
            (trainer.optimizer, "step", "optimizer"),
            (trainer.optimizer, "zero_grad", "optimizer"),
        ):
            function = vars(target).get(name) if isinstance(target, type) else None
            function = function if function is not None else target.__getattribute__(name)
            stack.enter_context(mock.patch.object(target, name, watch.wrapped(function, part)))
        trainer.train()
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    seconds = {part: watch.seconds[part] / options.steps for part in PARTS[:-1]}
    step = (steps.end - steps.start) / options.steps
    seconds["rest"] = step - sum(seconds.values())
    return {
        "method": options.method,
        "parameters": parameters,
        "seconds_per_step": step,
        "seconds": seconds,
        "outside": seconds["rest"] / step,
        "outside_with_optimizer": (seconds["rest"] + seconds["optimizer"]) / step,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="egpo", choices=METHODS, help="an online method")
    parser.add_argument("--textgame", action="store_true", help="the text game's model, questions and oracle")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    for name, default in (
        ("layers", 8),
        ("width", 384),
        ("heads", 6),
        ("intermediate", 512),
        ("vocabulary", 8192),
        ("prompt-tokens", 256),
        ("new-tokens", 64),
        ("prompts", 4),
        ("completions", 2),
        ("steps", 3),
        ("warm-up", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args()
    found = measure(textgame_setting() if options.textgame else word_setting(options), options)
    if options.json:
        print(json.dumps(found))
        return
    table = Table("part", "seconds a step", "share", box=None)
    for part in PARTS:
        table.add_row(
            part, f"{found['seconds'][part]:.4f}", f"{found['seconds'][part] / found['seconds_per_step']:.1%}"
        )
    table.add_row("step", f"{found['seconds_per_step']:.4f}", "100.0%")
    console = Console(width=None if Console().is_terminal else 120)
    console.print(f"{found['method']}, {found['parameters'] / 1e6:.1f}M parameters")
    console.print(table)
    console.print(
        f"outside generation, oracle and model: {found['outside']:.1%}, with the optimizer "
        f"{found['outside_with_optimizer']:.1%}"
    )


if __name__ == "__main__":
    main()
