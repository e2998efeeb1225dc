"""What a launch can do, decided before anything is loaded, and whether it is what was asked for."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import DeepSpeedPlugin
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from alignment.arguments import AlignmentArguments
from alignment.errors import UserError
from alignment.generation import Engine, check_engine, engine_refusal
from alignment.types import Ema, Needs


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


def check_sampling(needs: Needs, args: AlignmentArguments, engine: Engine | None) -> None:
    """Refuse samples that are not the policy's, or of which the method would learn nothing.

    Args:
        needs: of the method.
        args: of the training.
        engine: that a trainer was given in place of the one that ``args`` describe.

    Raises:
        UserError: naming the argument.
    """
    if engine is not None and not engine.takes_weights:
        raise UserError(
            f"engine: expected one that samples from the policy's own weights, got {type(engine).__name__}, whose "
            "server knows nothing of the policy that is trained"
        )
    if needs.samples_in_batches:
        check_engine(args.engine, args.engine_options)
        refusal = engine_refusal(args.engine, needs)
        if refusal is not None:
            raise UserError(refusal)
        key, count = "num_completions", args.num_completions
        if args.responses is not None:
            key, count = "responses", len(args.responses)
        # One alone would ask nobody, and train nothing.
        if needs.compares_responses and count < 2:
            raise UserError(f"{key}: expected at least 2 answers to compare, got {count}")
    if args.steps_per_rollout > 1 and not needs.allows_reuse:
        raise UserError(
            f"steps_per_rollout: expected 1, got {args.steps_per_rollout}: after its first step the method's loss "
            "would be about samples of a policy that is gone; more need one that reads the behaviour's log-probs"
        )


def keep_optimizer(plugin: DeepSpeedPlugin) -> None:
    """Have DeepSpeed step by the optimizer that it is given, also where its state is offloaded.

    Accelerate would put DeepSpeed's own Adam in its place there, and with it the look-ahead would be gone.
    """
    plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False


def check_precision(model: nn.Module, needs: Needs, args: TrainingArguments, *, keeps_average: bool) -> None:
    """Refuse weights so coarse that what is added to them is lost.

    A weight of 0.02 has neighbours 6e-5 to 1.2e-4 away in bfloat16, and a step of Adam is as large as its learning
    rate: at 1e-6 nearly all of them round to nothing, and in silence. DeepSpeed, and FSDP2 where the launch has a mixed
    precision, step weights in float32 that they keep for it. What a slow target or an average moves by is smaller
    still, and nobody keeps float32 for those.

    Args:
        model: the policy, as it was loaded.
        needs: of the method.
        args: of the training.
        keeps_average: whether an average of the weights is kept.

    Raises:
        UserError: saying what is lost, and what to change.
    """
    coarse = [p for p in model.parameters() if p.requires_grad and p.is_floating_point() and p.dtype.itemsize < 4]
    if not coarse:
        return
    precision = str(coarse[0].dtype).removeprefix("torch.")
    advice = "expected float32; training.bf16: true computes in bfloat16 all the same"
    if keeps_average or any(isinstance(spec, Ema) and spec.decay > 0 for spec in needs.anchors):
        what = "an average" if keeps_average else "a slow target"
        raise UserError(f"policy.dtype: {advice}; of {precision} weights {what} would lose what it moves by")
    typical = float(max(coarse, key=torch.Tensor.numel).detach().abs().float().mean())
    # At most half the distance to the nearest neighbour: a smaller step rounds to none.
    smallest = torch.finfo(coarse[0].dtype).eps * typical / 4
    is_mixed = args.bf16 or args.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    keeps_float32 = args.deepspeed_plugin is not None or (_is_asked("ACCELERATE_USE_FSDP") and is_mixed)
    # AnyPrecision's Adam sums up what rounding leaves.
    is_adam = "adam" in OptimizerNames(args.optim).value and args.optim != OptimizerNames.ADAMW_ANYPRECISION
    if is_adam and not keeps_float32 and 0 < args.learning_rate < smallest:
        raise UserError(
            f"policy.dtype: {advice}; steps of {args.learning_rate:g} (training.learning_rate) are lost in {precision} "
            f"weights, which are about {typical:.1g} and take none below {smallest:.0e}; or train an adapter "
            "(policy.lora), or under DeepSpeed"
        )


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
    if not _is_asked("ACCELERATE_USE_FSDP"):
        return
    # As accelerate reads them. FSDP1 keeps weights in another form; in parts a model cannot be loaded elsewhere.
    version, saved = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    if version != "2" or saved != "FULL_STATE_DICT":
        raise UserError(
            f"fsdp_config: expected fsdp_version: 2 and fsdp_state_dict_type: FULL_STATE_DICT, got {version} and "
            f"{saved}; recipes/accelerate/fsdp2.yaml has them"
        )
    if args.device.type == "cpu":
        raise UserError(
            "the launch asks for FSDP, but on a CPU nothing would be sharded: expected a GPU, or "
            "recipes/accelerate/zero3_cpu.yaml"
        )


def _is_asked(variable: str) -> bool:
    return os.environ.get(variable, "").lower() == "true"
