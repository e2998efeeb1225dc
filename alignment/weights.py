"""The trainable weights of a model at one time: a policy of its own, kept without the rest of the model.

For a LoRA adapter this is the adapter alone: a slow target, a past policy or another player costs no second base model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn

from alignment.sharding import assign, exchanged, gathered, parameters_of, whole


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

    def load(self, values: dict[str, Tensor]) -> None:
        """Take the values of a checkpoint."""
        assert values.keys() == self.values.keys(), "the values of another model"
        for name, value in self.values.items():
            value.copy_(values[name])


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
