"""Options of optimizer and scheduler: those that make one pass, the others are a line that names the keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from alignment.errors import UserError
from alignment.optimizer_options import check_optimizer


def check(folder: Path, settings: Mapping[str, Any], *, iteration_steps: int = 1, given: Any = (None, None)) -> None:
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, **settings)
    check_optimizer(args, iteration_steps=iteration_steps, given=given)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optim": "adamw_torch"},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        # What is the default anyway is read all the same.
        {"optim": "sgd", "optim_args": "momentum=0,dampening=0,nesterov=no"},
        {"optim": "rmsprop", "optim_args": "momentum=0.1,alpha=0.9,eps=1e-6,centered=1"},
        {"optim": "adagrad", "optim_args": "lr_decay=0.1,eps=1e-10"},
        {"optim": "adafactor"},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-6, "power": 2.0}},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 5000}},
        {"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": '{"timescale": 100}'},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.5}, "eval_strategy": "steps"},
    ],
    ids=str,
)
def test_what_transformers_makes_passes(settings: dict[str, Any], tmp_path: Path) -> None:
    check(tmp_path, settings)


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_steps_of_a_warm_up_that_nobody_reads_are_refused(name: str, tmp_path: Path) -> None:
    """Of each scheduler: the first steps of two trainings with and without a warm-up decide whether it is read."""
    needed = {"warmup_stable_decay": {"num_decay_steps": 5}, "cosine_with_min_lr": {"min_lr": 0.1}}
    needed["cosine_warmup_with_min_lr"] = needed["cosine_with_min_lr"]
    settings = {"lr_scheduler_type": name, "lr_scheduler_kwargs": needed.get(name), "eval_strategy": "steps"}
    rates = []
    for steps in (0, 4):
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, warmup_steps=steps, **settings)
        trainer = Trainer(model=nn.Linear(2, 2), args=args, eval_dataset=[0])
        trainer.create_optimizer()
        trainer.create_scheduler(20)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    check(tmp_path, settings)
    if rates[0] != rates[1]:
        check(tmp_path, settings | {"warmup_steps": 4})
        check(tmp_path, settings | {"warmup_steps": 0.2})
        return
    assert name in ("constant", "reduce_lr_on_plateau", "greedy")
    for steps in (4, 0.2):
        with pytest.raises(UserError) as caught:
            check(tmp_path, settings | {"warmup_steps": steps})
        assert str(caught.value) == (
            f"training.warmup_steps: expected 0 for '{name}', which does not warm up, got {steps}; write training."
            "lr_scheduler_type=constant_with_warmup (or linear, cosine, ...), or training.warmup_steps=0"
        )


OPTIMIZER = "training.optim, training.optim_args: expected what makes an optimizer, got "
SCHEDULER = "training.lr_scheduler_type, training.lr_scheduler_kwargs: expected what makes a scheduler, got "


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim": "sgd", "optim_args": "foo"}, OPTIMIZER + "'sgd' with the options 'foo' (not enough values"),
        (
            {"optim": "sgd", "optim_args": "momentum=-1"},
            OPTIMIZER + "'sgd' with the options 'momentum=-1' (Invalid mom",
        ),
        (
            {"optim": "sgd", "optim_args": "nesterov=true"},
            OPTIMIZER + "'sgd' with the options 'nesterov=true' (Nesterov",
        ),
        ({"lr_scheduler_kwargs": {"foo": 1}}, SCHEDULER + "'linear' with the options {'foo': 1} ("),
        ({"lr_scheduler_type": "warmup_stable_decay"}, SCHEDULER + "'warmup_stable_decay' with no options ("),
        # Read at the end of the warm-up first.
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "half"}},
            SCHEDULER + "'cosine' with the options {'num_cycles': 'half'} (",
        ),
    ],
    ids=str,
)
def test_what_makes_neither_is_named(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check(tmp_path, settings)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


OWN = "which would change nothing; training.learning_rate, training.weight_decay"
ADAM = f"{OWN}, training.adam_beta1, training.adam_beta2, training.adam_epsilon are keys of their own"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"optim": "adamw_torch", "optim_args": "beta1=0.8,eps=1e-6"},
            f"training.optim_args: expected options that 'adamw_torch' reads, got beta1, eps, {ADAM}",
        ),
        (
            {"optim": "sgd", "optim_args": "momentum=0.9,momentun=0.9"},
            f"training.optim_args: expected options that 'sgd' reads, got momentun, {OWN} are keys of their own",
        ),
        (
            {"optim": "sgd", "optim_args": "weight_decay=0.1"},
            f"training.optim_args: expected options that 'sgd' reads, got weight_decay, {OWN} are keys of their own",
        ),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
            "training.lr_scheduler_kwargs: expected none for 'constant', which reads none, got {'num_cycles': 2}",
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "lr_scheduler_kwargs": {"min_lr": 0.1}},
            "training.lr_scheduler_kwargs: expected none for 'constant_with_warmup', which reads none, got "
            "{'min_lr': 0.1}",
        ),
    ],
    ids=str,
)
def test_what_nobody_reads_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check(tmp_path, settings)
    assert str(caught.value) == said


def test_trainer_overrides_the_weight_decay_of_options(tmp_path: Path) -> None:
    """Why it counts as unread: transformers hands it to the optimizer, and its groups of parameters have their own."""
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, optim="sgd", optim_args="weight_decay=0.1", weight_decay=0.2
    )
    trainer = Trainer(model=nn.Linear(2, 2), args=args)
    assert {group["weight_decay"] for group in trainer.create_optimizer().param_groups} == {0.2, 0.0}


def read_as_text(args: TrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
    """As an optimizer whose switch is true for every text, also for "False"."""
    options = dict(option.split("=") for option in (args.optim_args or "").split(",") if option)
    return torch.optim.SGD, {"lr": 0.1, "maximize": bool(options.get("maximize", False))}


def look_at_the_model(args: TrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
    """As GaLore does."""
    if args.optim_target_modules is None:
        raise ValueError("You need to define `optim_target_modules`")
    return torch.optim.SGD, {"lr": 0.1, "params": list(model.named_modules())}


def hold_the_model(args: TrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
    """As LOMO does."""
    return torch.optim.SGD, {"lr": 0.1, "model": model}


def test_a_switch_that_is_always_on_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(read_as_text))
    for text in ("maximize=False", "maximize=true"):
        check(tmp_path, {"optim_args": text})
    with pytest.raises(UserError, match="got minimize, which would change nothing"):
        check(tmp_path, {"optim_args": "maximize=1,minimize=1"})


def test_what_needs_the_model_is_left_to_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it lacks before it looks at the model is said now, and the scheduler is looked at all the same."""
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(look_at_the_model))
    check(tmp_path, {"optim_target_modules": "all-linear", "optim_args": "rank=4"})
    with pytest.raises(UserError, match="You need to define `optim_target_modules`"):
        check(tmp_path, {})
    with pytest.raises(UserError, match=r"training\.lr_scheduler_kwargs"):
        check(tmp_path, {"optim_target_modules": "all-linear", "lr_scheduler_kwargs": {"foo": 1}})
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(hold_the_model))
    check(tmp_path, {})
    with pytest.raises(UserError, match="got rank, which would change nothing"):
        check(tmp_path, {"optim_args": "rank=4"})


def test_every_optimizer_passes_or_is_one_line(tmp_path: Path) -> None:
    """Whichever packages are there: one that is missing is named with the key."""
    for name in OptimizerNames:
        try:
            check(tmp_path, {"optim": name.value, "optim_target_modules": "all-linear"})
        except UserError as error:
            assert str(error).startswith(f"{OPTIMIZER}'{name.value}' with no options ("), name
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_iterations_of_several_steps_need_a_function_of_the_step(name: str, tmp_path: Path) -> None:
    settings = {"lr_scheduler_type": name, "eval_strategy": "steps"}
    check(tmp_path, settings)
    with pytest.raises(UserError, match=r"training\.lr_scheduler_type: expected .* for iterations of 2 steps, got "):
        check(tmp_path, settings, iteration_steps=2)


def test_what_was_built_elsewhere_is_not_looked_at(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    check(tmp_path, {"optim_args": "foo"}, given=(optimizer, None))
    check(tmp_path, {"lr_scheduler_kwargs": {"foo": 1}}, given=(None, scheduler))
