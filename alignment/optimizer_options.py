"""Optimizer and scheduler as arguments describe them, tried on one number before anything costs.

Transformers makes them when training begins, says its faults without the keys, and says nothing about options that
nobody reads.
"""

import copy
import enum
import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from alignment.errors import UserError

# Of the schedules that are tried: some read an option only after the warm-up, or near the end.
_WARMUP_STEPS, _STEPS = 10, 100


def check_optimizer(
    args: TrainingArguments,
    *,
    iteration_steps: int = 1,
    given: tuple[Optimizer | None, LRScheduler | None] = (None, None),
) -> None:
    """Refuse options that make no optimizer or no scheduler, and those that nobody reads.

    An optimizer that looks at the model (GaLore, APOLLO, LOMO) is made when training begins: known here is only what it
    lacks before that look, such as its package.

    Args:
        args: of the training.
        iteration_steps: optimizer steps of an iteration, which have one learning rate.
        given: optimizer and scheduler in place of those that ``args`` describe.

    Raises:
        UserError: naming the keys.
    """
    optimizer, scheduler = given
    if optimizer is not None:
        return
    _check_optimizer(args)
    if scheduler is None:
        _check_scheduler(args, iteration_steps)


def check_follows_steps(scheduler: Any, iteration_steps: int) -> None:
    """Refuse a scheduler that cannot give all steps of an iteration one learning rate.

    Raises:
        UserError: naming the key.
    """
    if iteration_steps > 1 and not isinstance(scheduler, LambdaLR):
        raise UserError(
            "training.lr_scheduler_type: expected one that is a function of the step (linear, cosine, constant, ...) "
            f"for iterations of {iteration_steps} steps, got {type(scheduler).__name__}"
        )


class NamingTrainer(Trainer):
    """transformers' Trainer, which says a fault of optimizer or scheduler with the keys that ask for it.

    Some show only when training begins: GaLore looks in the model for ``optim_target_modules``.
    """

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """See Trainer.

        Raises:
            UserError: if what ``args`` describe makes none.
        """
        with _naming_optimizer(self.args):
            # Older releases take no argument.
            return super().create_optimizer() if model is None else super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """See Trainer.

        Raises:
            UserError: if what ``args`` describe makes none.
        """
        with _naming_scheduler(self.args):
            return super().create_scheduler(num_training_steps, optimizer)


def _naming_optimizer(args: TrainingArguments) -> AbstractContextManager[None]:
    return _naming("training.optim, training.optim_args", "an optimizer", args.optim, args.optim_args)


def _naming_scheduler(args: TrainingArguments) -> AbstractContextManager[None]:
    keys = "training.lr_scheduler_type, training.lr_scheduler_kwargs"
    return _naming(keys, "a scheduler", args.lr_scheduler_type, args.lr_scheduler_kwargs)


@contextmanager
def _naming(keys: str, what: str, kind: Any, options: Any) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, ImportError, NotImplementedError) as error:
        given = "no options" if options is None else f"the options {options!r}"
        raise UserError(f"{keys}: expected what makes {what}, got '{_name(kind)}' with {given} ({error})") from error


def _name(kind: Any) -> str:
    # Enumerations of transformers are text with a value.
    return str(kind.value) if isinstance(kind, enum.Enum) else str(kind)


# Optimizer


class _ModelNeeded(Exception):  # noqa: N818
    """An optimizer looked at the model that is not there yet."""


class _NoModel:
    def __getattr__(self, name: str) -> Any:
        raise _ModelNeeded


@functools.cache
def _no_model() -> Any:
    """In place of the model; one alone, as settings that hold it are compared."""
    return _NoModel()


def _check_optimizer(args: TrainingArguments) -> None:
    with _naming_optimizer(args), suppress(_ModelNeeded):
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, _no_model())
        _check_options(args, settings)
        # The others are made of the whole model.
        if isinstance(kind, type) and issubclass(kind, Optimizer) and "model" not in settings:
            kind([{"params": [_number()], "weight_decay": args.weight_decay}], **settings)


def _check_options(args: TrainingArguments, settings: Mapping[str, Any]) -> None:
    if not args.optim_args:
        return
    options = dict(option.split("=") for option in args.optim_args.replace(" ", "").split(","))
    # Trainer's groups of parameters have a weight decay each, before which that of the options is nothing.
    unread = [key for key in options if key == "weight_decay" or not _is_read(args, options, key)]
    if unread:
        own = ["training.learning_rate", "training.weight_decay"]
        if "betas" in settings:
            own += ["training.adam_beta1", "training.adam_beta2", "training.adam_epsilon"]
        raise UserError(
            f"training.optim_args: expected options that '{_name(args.optim)}' reads, got {', '.join(unread)}, which "
            f"would change nothing; {', '.join(own)} are keys of their own"
        )


def _is_read(args: TrainingArguments, options: Mapping[str, str], key: str) -> bool:
    """Whether it makes any difference what the option says, or that it is there.

    The probes are a word, which is no number, and what is read as false and as true.
    """
    without = {name: value for name, value in options.items() if name != key}
    tried = [_settings(args, without | {key: value}) for value in ("word", "0", "1")]
    return any(settings != _settings(args, without) for settings in tried)


def _settings(args: TrainingArguments, options: Mapping[str, str]) -> Any:
    """What transformers reads of options; ``None`` where it fails."""
    changed = copy.copy(args)
    changed.optim_args = ",".join(f"{name}={value}" for name, value in options.items())
    with suppress(TypeError, ValueError, AttributeError):
        return Trainer.get_optimizer_cls_and_kwargs(changed, _no_model())
    return None


def _number() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1))


# Scheduler


def _check_scheduler(args: TrainingArguments, iteration_steps: int) -> None:
    options = args.lr_scheduler_kwargs
    with _naming_scheduler(args):
        scheduler = _make_scheduler(args, options)
        for function in scheduler.lr_lambdas if isinstance(scheduler, LambdaLR) else ():
            for step in range(_STEPS):
                function(step)
    check_follows_steps(scheduler, iteration_steps)
    if args.warmup_steps and not _warms_up(args):
        raise UserError(
            f"training.warmup_steps: expected 0 for '{_name(args.lr_scheduler_type)}', which does not warm up, got "
            f"{args.warmup_steps:g}; write training.lr_scheduler_type=constant_with_warmup (or linear, cosine, ...), "
            "or training.warmup_steps=0"
        )
    if options and not _reads_options(args):
        raise UserError(
            f"training.lr_scheduler_kwargs: expected none for '{_name(args.lr_scheduler_type)}', which reads none, got "
            f"{options!r}"
        )


def _reads_options(args: TrainingArguments) -> bool:
    """A scheduler that reads options knows their names."""
    try:
        _make_scheduler(args, {"no such option": None})
    except TypeError:
        return True
    return False


def _warms_up(args: TrainingArguments) -> bool:
    """Transformers hands the steps to whatever takes them."""
    make = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(args.lr_scheduler_type)]
    return "num_warmup_steps" in inspect.signature(make).parameters


def _make_scheduler(args: TrainingArguments, options: Any) -> Any:
    return get_scheduler(
        args.lr_scheduler_type,
        SGD([_number()], lr=args.learning_rate),
        num_warmup_steps=_WARMUP_STEPS,
        num_training_steps=_STEPS,
        scheduler_specific_kwargs=options,
    )
