"""What a launch can do, decided before anything is loaded, and whether it is what was asked for."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from typing import Any

from accelerate import DeepSpeedPlugin
from transformers import TrainingArguments

from alignment.errors import UserError
from alignment.types import Needs


def uses_deepspeed(training: Mapping[str, Any]) -> bool:
    """Whether the launcher, or the ``training.deepspeed`` key of a recipe, asks for DeepSpeed."""
    return _is_asked("ACCELERATE_USE_DEEPSPEED") or training.get("deepspeed") is not None


def check_deepspeed(*, on_cpu: bool) -> None:
    """Refuse what DeepSpeed would fail at late.

    Args:
        on_cpu: whether processes talk through the kernel that DeepSpeed compiles for CPUs.

    Raises:
        UserError: if DeepSpeed or what it compiles with is missing.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("the launch asks for DeepSpeed: expected the extra `deepspeed`, found none; install it")
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None] if on_cpu else []
    if missing:
        raise UserError(
            f"DeepSpeed on a CPU compiles its communication at first use: expected g++ and ninja, found no "
            f"{' and no '.join(missing)}; install {'them' if len(missing) > 1 else 'it'}"
        )


def check_stages(needs: Needs, plugin: DeepSpeedPlugin) -> None:
    """Refuse two stages an iteration where DeepSpeed keeps the weights out of reach.

    Raises:
        UserError: naming the key.
    """
    if needs.stages == 1:
        return
    if plugin.zero_stage == 0:
        raise UserError(
            f"zero_stage: expected 1, 2 or 3 for a method of {needs.stages} stages an iteration, got 0; use DDP instead"
        )
    for part in ("optimizer", "param"):
        if plugin.hf_ds_config.get_value(f"zero_optimization.offload_{part}.device") == "nvme":
            raise UserError(
                f"offload_{part}_device: expected none or cpu for a method of {needs.stages} stages an iteration, got "
                "nvme, from which weights cannot be returned to the start of the iteration"
            )


def keep_optimizer(plugin: DeepSpeedPlugin) -> None:
    """Have DeepSpeed step by the optimizer that it is given, also where its state is offloaded.

    Accelerate would put DeepSpeed's own Adam in its place there, and with it the look-ahead would be gone.
    """
    plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False


def check_launch(args: TrainingArguments) -> None:
    """Refuse to go on as something else than the launcher was asked for.

    Args:
        args: of this process.

    Raises:
        UserError: saying what was asked for, what runs, and what to change.
    """
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if args.world_size == 1:
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        # `accelerate launch --cpu --num_processes 2` says where processes meet, and starts one.
        if asked > 1 or (is_launched and "WORLD_SIZE" not in os.environ and "MASTER_ADDR" in os.environ):
            raise UserError(
                f"the launch asks for {asked if asked > 1 else 'several'} processes, but each would train alone: on a "
                "CPU use recipes/accelerate/ddp_cpu.yaml or a zero*_cpu.yaml (distributed_type MULTI_GPU or DEEPSPEED, "
                "not MULTI_CPU, --cpu or FSDP)"
            )
    if _is_asked("ACCELERATE_USE_FSDP") and args.device.type == "cpu":
        raise UserError(
            "the launch asks for FSDP, but on a CPU nothing would be sharded: expected a GPU, or "
            "recipes/accelerate/zero3_cpu.yaml"
        )


def _is_asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() == "true"
