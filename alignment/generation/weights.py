"""Weights of a policy in the form that another process or library loads: whole tensors, or an adapter's folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from alignment.errors import UserError
from alignment.sharding import parameters_of, save_alone, whole

_ADAPTER = "lora_"


def is_adapted(module: Any) -> bool:
    """Whether the module is a LoRA model whose adapter is switched on."""
    return isinstance(module, PeftModel) and module.get_model_status().enabled is True


def base_of(module: Any) -> Any:
    """The module itself, or the model under its adapter."""
    return module.get_base_model() if isinstance(module, PeftModel) else module


def base_weights(module: Any) -> Iterator[tuple[str, Tensor]]:
    """Names, as in the model's own checkpoint, and whole tensors of everything but adapters.

    Raises:
        UserError: for weights that nobody has gathered (:func:`alignment.sharding.gathered`).
    """
    for name, tensor in parameters_of(base_of(module)).items():
        if not tensor.numel():
            raise UserError(
                f"sampling.engine: expected whole weights on every process, found '{name}' partitioned (ZeRO-3); "
                "train with DDP or ZeRO-2, or sample with 'transformers'"
            )
        if _ADAPTER not in name:
            yield name.replace(".base_layer", ""), whole(tensor)


def save_base(module: Any, folder: Path) -> None:
    """The base model's weights as a checkpoint folder."""
    save_alone(base_of(module), dict(base_weights(module)), folder)


def save_adapter(module: PeftModel, folder: Path) -> None:
    """The adapter as a folder in the format of peft."""
    adapter = {name: whole(tensor) for name, tensor in module.state_dict().items() if _ADAPTER in name}
    module.save_pretrained(str(folder), state_dict=adapter)


def lora_rank(module: Any) -> int | None:
    """The rank of the module's adapter; ``None`` if it has none."""
    return int(module.peft_config[module.active_adapter].r) if isinstance(module, PeftModel) else None
