"""Iterations of several optimizer steps: counted, scheduled, and rounded to, so that no stage is taken for a whole."""

import copy
import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from alignment.anchors import AnchorSet
from alignment.arguments import AlignmentArguments
from alignment.generation import Engine


def count_stages(args: AlignmentArguments, stages: int) -> AlignmentArguments:
    """A copy whose counts are optimizer steps instead of iterations. Fractions below 1 and "not set" stay.

    Warm-up stays as well: the scheduler is built for iterations.
    """
    args = copy.copy(args)
    for name in ("max_steps", "logging_steps", "eval_steps", "save_steps", "eval_delay"):
        value = vars(args)[name]
        if value is not None and value >= 1:
            setattr(args, name, value * stages)
    return args


def per_iteration(function: Callable[[int], float], stages: int) -> Callable[[int], float]:
    """A schedule of optimizer steps read at iterations. A plain function, which schedulers leave out of checkpoints."""
    return lambda step: function(step // stages)


class WholeIterations(TrainerCallback):
    """Rounds intervals given as fractions of a run up to whole iterations: a policy between stages is not one."""

    def __init__(self, stages: int) -> None:
        self.stages = stages

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.logging_steps = self._rounded(state.logging_steps)
        state.eval_steps = self._rounded(state.eval_steps)
        state.save_steps = self._rounded(state.save_steps)

    def _rounded(self, steps: float | None) -> int | None:
        return None if steps is None else math.ceil(steps / self.stages) * self.stages


class AdvanceAnchors(TrainerCallback):
    """Moves slow targets after every ``inner_steps`` iterations, before a checkpoint of that step is written."""

    def __init__(self, anchors: AnchorSet, *, steps_between: int) -> None:
        self.anchors, self.steps_between = anchors, steps_between

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.steps_between == 0:
            self.anchors.advance()


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
