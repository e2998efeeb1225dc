"""Weights that several processes hold in parts: loaded whole, gathered to be read, given values, put back.

Under DeepSpeed ZeRO-3 a parameter is a handle, whole only while a layer uses it; under FSDP2 it is a ``DTensor``, of
which each process holds a part. Under ZeRO-1 to 3 the optimizer steps weights of its own, a part of them on each
process, and the ones of the forward are copies of these. Nothing is divided before a training begins.

All processes call what is here together, except for :func:`loaded_whole`, :func:`is_divided`, :func:`parameters_of` and
:func:`save_alone`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import fsdp2_canonicalize_names, fsdp2_prepare_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as launched
from transformers.integrations import is_deepspeed_zero3_enabled


def _partitioned(parameters: Iterable[nn.Parameter]) -> list[Any]:
    """Those that ZeRO-3 has partitioned, with what it keeps on them."""
    if not is_deepspeed_zero3_enabled():
        return []
    from deepspeed.runtime.zero.partition_parameters import is_zero_param

    return [parameter for parameter in parameters if is_zero_param(parameter)]


# What a configuration of DeepSpeed says of the policy alone.
_OF_TRAINING = ("optimizer", "scheduler", "checkpoint")


def divide_frozen(module: nn.Module, config: Mapping[str, Any], *, keeps_precision: bool) -> None:
    """Divide a module that is not trained as ZeRO-3 divides the one that is.

    Args:
        module: whole on every process, with the same weights.
        config: of DeepSpeed, as it divided the policy.
        keeps_precision: leave the weights as they are, where DeepSpeed would round them as it rounds the policy's.
    """
    import deepspeed

    own = {key: value for key, value in deepcopy(dict(config)).items() if key not in _OF_TRAINING}
    if keeps_precision:
        own = {key: value for key, value in own.items() if key not in ("bf16", "fp16")}
    engine, *_ = deepspeed.initialize(model=module, config=own)
    parameter: Any
    for parameter in module.parameters():
        # Where the optimizer of weights that are trained has it.
        parameter._z3_optimizer = SimpleNamespace(parameter_offload=engine.optimizer)


def divide_frozen_as_fsdp2(module: nn.Module, accelerator: Accelerator) -> None:
    """Divide a module that is not trained as Accelerate has FSDP2 divide the one that is.

    In the same units (layers, embedding, norm and head), over the same processes, in the same precision, into which
    weights are rounded as they are gathered: those that a process holds stay as they are.

    Args:
        module: whole on every process, with the same weights.
        accelerator: that has prepared the policy.
    """
    plugin = accelerator.state.fsdp_plugin
    # Accelerate has put down how the policy's layers are called; a model of another family has layers of its own.
    layers, plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap, None
    try:
        divided: Any = fsdp2_prepare_model(accelerator, module)
    finally:
        plugin.transformer_cls_names_to_wrap = layers
    # No backward pass will ask for what the last layers would leave whole.
    divided.set_reshard_after_forward(True)


def round_as(module: nn.Module, engine: Any) -> None:
    """Round weights as DeepSpeed has rounded those of the policy; buffers stay."""
    dtype = next(engine.module.parameters()).dtype
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def is_divided(module: nn.Module) -> bool:
    """Whether a forward of the module is one that all processes take together."""
    return bool(_partitioned(module.parameters())) or any(isinstance(part, FSDPModule) for part in module.modules())


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by the names that they have in files, divided again; a launch may have put wrappers into both."""
    divide_again(module)
    return dict(fsdp2_canonicalize_names(dict(module.named_parameters())))


def divide_again(module: nn.Module) -> None:
    """Drop what FSDP2 left whole after a forward without gradient: idle where there is nothing of it.

    That is a copy. Values given to it would be lost, and what the parts are given meanwhile would not be seen.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def loaded_whole() -> Iterator[None]:
    """While the context is open transformers loads models whole on every process.

    Under ZeRO-3 it would load handles, which cannot be copied, hashed, or sampled from by one process alone.
    """
    reference = launched._hf_deepspeed_config_weak_ref
    config = None if reference is None else reference()
    launched.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            launched.set_hf_deepspeed_config(config)


def save_alone(model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a checkpoint from this process, whichever it is; transformers' own way writes on the first one alone.

    Args:
        model: what it is a checkpoint of.
        weights: whole, by the names of its parameters; one that has two names under one of them.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    for part in filter(None, (config, model.generation_config)):
        part.save_pretrained(folder)
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, are_written: bool = False) -> Iterator[None]:
    """While the context is open every process can read the whole of what ZeRO-3 partitioned.

    Args:
        parameters: of any model.
        are_written: keep what the first process writes to them, instead of the parts that each has.
    """
    partitioned = _partitioned(parameters)
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if are_written else None):
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which FSDP2 may have given each process a part; without gradient."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def move_towards(slow: nn.Module, model: nn.Module, share: float) -> None:
    """``slow <- (1 - share) slow + share model``, in parameters; one at a time, because together they need not fit."""
    policy = parameters_of(model)
    for name, parameter in parameters_of(slow).items():
        with gathered([policy[name]]), gathered([parameter], are_written=True):
            parameter.lerp_(_divided_like(parameter, policy[name]).to(parameter), share)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a module that may have been divided, on the CPU where it has."""
    if not is_divided(module):
        return module.state_dict()
    state = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        with gathered([tensor] if isinstance(tensor, nn.Parameter) else []):
            state[name] = whole(tensor).cpu().clone()
    return state


def load_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module, divided or not, what :func:`whole_state` gave; every process has the whole of it."""
    if is_divided(module):
        assign(module.state_dict(keep_vars=True), state)
    else:
        module.load_state_dict(state)


@torch.no_grad()
def assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Give parameters values that every process holds whole."""
    with gathered((parameters[name] for name in values), are_written=True):
        for name, value in values.items():
            parameters[name].copy_(_divided_like(parameters[name], value))


def _divided_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A value, whole or divided by FSDP2, as the parameter is."""
    if not isinstance(parameter, DTensor):
        return whole(value)
    if isinstance(value, DTensor):
        assert value.placements == parameter.placements, "weights that FSDP2 has divided in two ways"
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


@contextmanager
def exchanged(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """While the context is open these parameters of a module have these values; afterwards their own, bit for bit."""
    is_whole = not is_divided(module)
    parameters = parameters_of(module)
    if is_whole:
        own = {name: parameters[name].data for name in values}
        for name, value in values.items():
            parameters[name].data = value.to(own[name].device)
    else:
        with gathered(parameters[name] for name in values):
            own = {name: whole(parameters[name]).clone() for name in values}
        assign(parameters, values)
    try:
        yield
    finally:
        parameters = parameters_of(module)
        if is_whole:
            for name, value in own.items():
                parameters[name].data = value
        else:
            assign(parameters, own)


@contextmanager
def rounded(module: nn.Module, precision: str) -> Iterator[None]:
    """While the context is open the weights are rounded as DeepSpeed rounds those that it trains; divided ones are.

    Args:
        module: the policy before it is trained, or a frozen one.
        precision: of the launch, as Accelerate calls it: ``bf16``, ``fp16``, or ``no``.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None or is_divided(module):
        yield
        return
    wide = {name: weight for name, weight in module.named_parameters() if weight.dtype == torch.float32}
    with exchanged(module, {name: weight.data.to(dtype) for name, weight in wide.items()}):
        yield


@contextmanager
def gathered_once(module: nn.Module) -> Iterator[None]:
    """While the context is open the weights of a module stay whole from one forward to the next.

    For sampling, which would otherwise gather all weights for every token. Only for looking: no gradient, no step.
    """
    if isinstance(module, FSDPModule):
        with _left_whole(module):
            yield
        return
    partitioned = _partitioned(module.parameters())
    if not partitioned:
        yield
        return
    # The hooks of its layers release what they have used.
    offload = partitioned[0]._z3_optimizer.parameter_offload
    with gathered(partitioned):
        for parameter in partitioned:
            parameter.ds_active_sub_modules.clear()
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload._register_deepspeed_module(offload.module)


@contextmanager
def _left_whole(module: Any) -> Iterator[None]:
    """While the context is open a model that FSDP2 has divided is gathered once."""
    module.set_reshard_after_forward(False)
    try:
        yield
    finally:
        if any(parameter.requires_grad for parameter in module.parameters()):
            module.set_reshard_after_forward(AcceleratorState().fsdp_plugin.reshard_after_forward)
            # What is left over for the root is needed last and first: a backward pass would gather it at once.
            module.set_reshard_after_forward(False, recurse=False)
        else:
            module.set_reshard_after_forward(True)
        divide_again(module)
        # FSDP2 notes the layers of each forward until a backward pass: kilobytes for every token. Torch can drop the
        # notes, but not the oldest one that is supported.
        forget = vars(FSDPModule).get("reset_iter_state")
        if forget is not None:
            forget(module)


def refresh_from_optimizer(engine: Any) -> None:
    """Give the weights of the forward the values of those that the optimizer steps, after these were set by hand.

    Args:
        engine: of DeepSpeed, at stage 1, 2 or 3.
    """
    if engine.zero_optimization_stage() < 3:
        engine.optimizer.update_lp_params()
        return
    from deepspeed.utils import safe_get_full_fp32_param

    # One at a time: together they need not fit.
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            assign({name: parameter}, {name: safe_get_full_fp32_param(parameter)})
