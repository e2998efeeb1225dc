"""The trainable weights of a model at one time: a policy of its own, kept without the rest of the model.

For a LoRA adapter this is the adapter alone: a slow target, a past policy or another player costs no second base model.
"""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alignment.errors import UserError
from alignment.sharding import assign, exchanged, gathered, parameters_of, whole


def forget_models() -> None:
    """Free models whose owners only know one another, and give their memory back to the device.

    A trainer and its callbacks know each other. What torch keeps of what is freed it would use again by itself; vLLM,
    in the same process, counts it as taken.
    """
    gc.collect()
    torch.cuda.empty_cache()


class TrainableWeights:
    """A copy of a model's trainable parameters, which can be put in their place for a while.

    Args:
        model: not wrapped for distribution.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> start = TrainableWeights(model)
        >>> _ = model.weight.data.add_(1.0)
        >>> with start.in_place(model):
        ...     moved_back = bool(model.weight == start.values["weight"])
        >>> moved_back, bool(model.weight == start.values["weight"])
        (True, False)
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = _trainable(model)
        with gathered(parameters.values()):
            self.values: dict[str, Tensor] = {name: whole(parameter).clone() for name, parameter in parameters.items()}

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """While the context is open the model has these weights; afterwards its own, bit for bit.

        Only for looking: a gradient or a step inside would be that of neither policy.
        """
        with exchanged(model, self.values):
            yield

    @torch.no_grad()
    def move_towards(self, model: nn.Module, share: float) -> None:
        """``values <- (1 - share) values + share model``, in parameters."""
        parameters = _trainable(model)
        with gathered(parameters.values()):
            for name, value in self.values.items():
                value.lerp_(whole(parameters[name]).to(value), share)

    def average_in(self, model: nn.Module, *, number: int, decay: float) -> None:
        """Let the policy after iteration ``number`` enter an average over iterations, the start among them.

        It is the plain mean of all policies at first, an exponential one later; with a decay of 1 the mean to the end.
        """
        self.move_towards(model, max(1.0 - decay, 1.0 / (number + 1)))

    def load(self, values: dict[str, Tensor]) -> None:
        """Take the values of a checkpoint."""
        assert values.keys() == self.values.keys(), "the values of another model"
        for name, value in self.values.items():
            value.copy_(values[name])


def add_adapter(model: Any, config: PeftConfig) -> Any:
    """The model with a new adapter.

    Raises:
        UserError: if the adapter fits no part of the model.
    """
    with naming_targets(model, config):
        return get_peft_model(model, config)


@contextmanager
def naming_targets(model: nn.Module, config: PeftConfig) -> Iterator[None]:
    """While an adapter is made of ``config``: modules that cannot take it are refused with names of some that can."""
    try:
        yield
    except (ValueError, re.error) as error:
        # The newest peft has a class for some of these; others have only their words.
        refusals = ("Target module", "No modules were targeted", "No `target_modules`")
        if not isinstance(error, re.error) and not str(error).startswith(refusals):
            raise
        matrices = (nn.Linear, nn.Embedding, Conv1D)
        names = [name for name, part in model.named_modules() if isinstance(part, matrices)]
        leaves = sorted({name.rpartition(".")[2] for name in names})
        asked = vars(config)["target_modules"]
        if isinstance(asked, str):
            found = f"{asked!r}, a regular expression for whole names, such as {', '.join(names[:2])}"
        else:
            found = str(sorted(asked))
        raise UserError(
            f"policy.lora.target_modules: expected names of modules of the model, such as [{', '.join(leaves[:8])}], "
            f"or all-linear, got {found}"
        ) from error


def adapter_weights(model: PeftModel, folder: str | Path) -> TrainableWeights:
    """The weights of a saved adapter of the same shape as the model's own, which stays as it is."""
    own = TrainableWeights(model)
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device=str(model.device)))
    saved = TrainableWeights(model)
    assign(_trainable(model), own.values)
    return saved


def idle_adapter(model: PeftModel) -> TrainableWeights:
    """The weights of an adapter of the same shape that does nothing: the base model as a policy."""
    idle = TrainableWeights(model)
    for name, value in idle.values.items():
        if "lora_B" in name:
            value.zero_()
    return idle


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in parameters_of(model).items() if parameter.requires_grad}
