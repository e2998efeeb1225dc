"""Iterations of several optimizer steps: counted, scheduled, and rounded to, so that no part is taken for a whole."""

import copy
import math
from collections.abc import Callable
from typing import Any

from transformers import EarlyStoppingCallback, IntervalStrategy, TrainerCallback, TrainerControl, TrainerState

from alignment.anchors import AnchorSet
from alignment.arguments import AlignmentArguments
from alignment.generation import Engine
from alignment.weights import TrainableWeights


def count_steps(args: AlignmentArguments, steps: int) -> AlignmentArguments:
    """A copy whose counts are optimizer steps instead of iterations. Fractions below 1 and "not set" stay.

    Warm-up stays as well: the scheduler is built for iterations.
    """
    args = copy.copy(args)
    for name in ("max_steps", "logging_steps", "eval_steps", "save_steps", "eval_delay"):
        value = vars(args)[name]
        counts_epochs = name == "eval_delay" and args.eval_strategy == IntervalStrategy.EPOCH
        if value is not None and value >= 1 and not counts_epochs:
            setattr(args, name, value * steps)
    return args


def per_iteration(function: Callable[[int], float], steps: int) -> Callable[[int], float]:
    """A schedule of optimizer steps read at iterations. A plain function, which schedulers leave out of checkpoints."""
    return lambda step: function(step // steps)


class WholeIterations(TrainerCallback):
    """Rounds intervals given as fractions of a run up to whole iterations: a policy between stages is not one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.logging_steps = self._rounded(state.logging_steps)
        state.eval_steps = self._rounded(state.eval_steps)
        state.save_steps = self._rounded(state.save_steps)

    def _rounded(self, steps: float | None) -> int | None:
        return None if steps is None else math.ceil(steps / self.steps) * self.steps


class AdvanceAnchors(TrainerCallback):
    """Moves slow targets after every ``inner_steps`` iterations, before a checkpoint of that step is written."""

    def __init__(self, anchors: AnchorSet, *, steps_between: int) -> None:
        self.anchors, self.steps_between = anchors, steps_between

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.steps_between == 0:
            self.anchors.advance()


class HoldAnchors(TrainerCallback):
    """Has frozen models held as the policy is, when DeepSpeed or FSDP2 has it."""

    def __init__(self, hold: Callable[[], None]) -> None:
        self.hold = hold

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.hold()


class KeepAverage(TrainerCallback):
    """Averages the policy's weights over iterations, the start among them.

    ``average <- average + share (policy - average)``, ``share = max(1 - decay, 1 / (iterations + 1))``: the plain mean
    of all policies at first, an exponential one later. It stands for the average policy that some theory is about; an
    average of weights is that only to first order.

    Args:
        average: the weights at the start.
        decay: in [0, 1]; 1 is the plain mean to the end.
        steps: optimizer steps of an iteration.
    """

    def __init__(self, average: TrainableWeights, *, decay: float, steps: int) -> None:
        self.average, self.decay, self.steps = average, decay, steps

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        iterations, between = divmod(state.global_step, self.steps)
        if between == 0:
            self.average.average_in(model, number=iterations, decay=self.decay)


class StopEarly(EarlyStoppingCallback):
    """Transformers' own; a run that had stopped by it, and is continued, stops again."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        control.should_training_stop |= self.early_stopping_patience_counter >= self.early_stopping_patience


class RefreshEngine(TrainerCallback):
    """Tells the engine when weights have changed: after every optimizer step, and when a checkpoint was loaded."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.engine.refresh()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.engine.refresh()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The best checkpoint may have been loaded.
        self.engine.refresh()
