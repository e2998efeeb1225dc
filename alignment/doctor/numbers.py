"""Checks of numbers: options and learning rates against those of papers, and what the optimizer reads."""

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any, cast

from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from alignment.arguments import AlignmentArguments
from alignment.config import PolicySpec, Recipe
from alignment.doctor.findings import Finding
from alignment.errors import UserError
from alignment.methods._card import Options
from alignment.optimizer_options import check_optimizer as check_by_arguments
from alignment.textgame import is_address
from alignment.types import Needs

# How far outside what a paper used a number is called far outside.
_FAR = 10.0
# A LoRA adapter is trained with about ten times the rate of all weights.
_LORA_FACTOR = 10.0
# Rates are compared at this batch, by the square-root rule of Adam (2205.10287).
_USUAL_BATCH = 64
_NOT_JUDGED = "not judged: no paper trains a model as small as this one"


def check_numbers(recipe: Recipe) -> Iterator[Finding]:
    """Options of the method against what its paper used."""
    method = recipe.build_method()
    for spec in dataclasses.fields(cast(Any, method)):
        usual = spec.metadata.get("usual")
        value = recipe.method.get(spec.name)
        if usual is None or value is None:
            continue
        low, high = usual
        said = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        text = f"{spec.name} = {value:g}; usual {said}: {spec.metadata['paper']}"
        if low / _FAR <= value <= high * _FAR:
            yield Finding("options", "ok", text)
        elif _is_small(recipe.policy):
            yield Finding("options", "note", f"{text}; {_NOT_JUDGED}")
        else:
            yield Finding("options", "fail", f"{text}; that is more than {_FAR:g} times off")


def _is_small(policy: PolicySpec) -> bool:
    return policy.tiny is not None or is_address(policy.model)


def check_optimizer(args: AlignmentArguments, needs: Needs) -> Finding:
    """Optimizer and scheduler can be made, and read every option."""
    try:
        check_by_arguments(args, iteration_steps=args.iteration_steps(needs))
    except UserError as error:
        return Finding("optimizer", "fail", str(error))
    names = OptimizerNames(args.optim).value, SchedulerType(args.lr_scheduler_type).value
    return Finding("optimizer", "ok", "{} with the schedule {}".format(*names))


def check_learning_rate(recipe: Recipe, args: AlignmentArguments, num_rows: int) -> Finding:
    """The rate that is usual for the family, at the batch of this recipe."""
    method = recipe.build_method()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * (num_rows // batch))
    plan = f"{args.learning_rate:g}, {steps:,} steps of {batch} prompts on {processes} process(es)"
    if steps == 0:
        return Finding("learning rate", "fail", f"{plan}: fewer rows than one batch; lower the batch")
    if _is_small(recipe.policy):
        return Finding("learning rate", "ok", f"{plan}; {_NOT_JUDGED}")
    if not isinstance(method, Options):
        return Finding("learning rate", "ok", f"{plan}; the method names no usual rate")
    low, high = method.usual_learning_rate
    if recipe.policy.lora is not None:
        low, high = low, high * _LORA_FACTOR
    effective = args.learning_rate * math.sqrt(_USUAL_BATCH / batch)
    said = f"{plan}; as {effective:.1e} at {_USUAL_BATCH} prompts, usual {low:g} to {high:g}"
    if low / _FAR <= effective <= high * _FAR:
        return Finding("learning rate", "ok", said)
    return Finding("learning rate", "fail", f"{said}: more than {_FAR:g} times off, set training.learning_rate")
