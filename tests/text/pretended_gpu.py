"""Tensors that say they are on a GPU, refuse to meet those of the CPU where a GPU's would, and are computed on the CPU.

A backend of torch in Python, so that it shows without a GPU, and on real numbers, whether what a step needs is where it
is needed, and whether it does what a GPU refuses under ``full_determinism``. It is registered for a whole process, so
this is a script (``tests/text/test_devices.py`` runs it). Kernels, autocast and streams of a GPU are not pretended.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.state import PartialState
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from alignment.arguments import AlignmentArguments
from alignment.data import Comparison, Row, Turn
from alignment.methods import dpo
from alignment.oracles import PanelOracle, RuleOracle
from alignment.oracles.rules import paper_scissors_stone, shorter
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.trainer import PreferenceTrainer
from tests.determinism import check_determined

aten = torch.ops.aten
# The device that torch leaves to others.
GPU = torch.device("privateuseone:0")
# Of these tensors may come from anywhere, and indices from the CPU.
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class OnGPU(Tensor):
    """A tensor with the numbers of another one, ``raw``."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "OnGPU":
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype, "device": GPU}
        made: OnGPU = Tensor._make_wrapper_subclass(cls, raw.shape, **layout)  # type: ignore[attr-defined]
        made.raw = raw
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Has torch exchange the tensors of a module that moves, so that tied weights stay one."""
        return ["raw"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "OnGPU":
        return OnGPU(inner["raw"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = OnGPU(self.raw.detach().clone())
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function == Tensor.tolist:
                return args[0].raw.tolist()
            if function == Tensor.data.__set__:  # type: ignore[attr-defined]
                args[0].raw = args[1].raw
            return function(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if function is aten._fused_sdp_choice.default:
        return 0  # by plain products
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_here = any(isinstance(tensor, OnGPU) for tensor in tensors)
    if is_here:
        check_determined(function, args, kwargs)
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnGPU)]
    if is_here and strangers and function not in _COPIES:
        if function in _INDEXED and isinstance(args[0], OnGPU):
            strangers = [tensor for tensor in strangers if not any(tensor is index for index in args[1])]
        if torch.Tag.pointwise in function.tags or function is aten.masked_fill.Tensor:
            strangers = [tensor for tensor in strangers if tensor.dim()]
        if strangers:
            raise RuntimeError(
                f"{function}: expected tensors of one device, found {list(strangers[0].shape)} on the CPU"
            )
    device = kwargs.get("device")
    goes = is_here if device is None else torch.device(device).type == GPU.type
    if function is aten.copy_.default:
        goes = isinstance(args[0], OnGPU)
    own = kwargs | ({} if device is None else {"device": torch.device("cpu"), "pin_memory": False})
    plain_args, plain_kwargs = tree_map_only(OnGPU, lambda tensor: tensor.raw, (args, own))
    found = function(*plain_args, **plain_kwargs)
    returns, written = function._schema.returns, _written(function._schema, args, kwargs)
    results = [found] if len(returns) == 1 else found
    if written and returns:
        results = [written[next(iter(one.alias_info.before_set))] for one in returns]
    elif goes:
        results = tree_map_only(Tensor, OnGPU, list(results) if returns else results)
    return results[0] if len(returns) == 1 else results


def _written(schema: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an operation writes to, by the name that its results have for it."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    written = [one for one in schema.arguments if one.alias_info is not None and one.alias_info.is_write]
    return {name: given[one.name] for one in written for name in one.alias_info.before_set}


class _Computing(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


class _Making(TorchFunctionMode):
    """``torch.tensor`` makes its numbers below every mode."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if function in (torch.tensor, torch.as_tensor) else None
        made = function(*args, **kwargs)
        return made if device is None else made.to(device)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """While the context is open tensors can be made on the device :data:`GPU` and moved there."""
    with _Computing(), _Making():
        yield


METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "egpo": {"tau": 0.1},
    "nash_md": {"tau": 0.1, "mix": 0.25},
    "nash_mp": {"tau": 0.1, "eta": 0.5},
    "maxmin": {"base": {"name": "spo", "kappa_ref": 0.05}},
}
PROMPTS = ("a b c", "hello there you", "x", "one two three four")
ROWS = tuple(
    Row(
        prompt=(Turn("user", prompt),),
        responses=(f"{prompt} is fine", f"{prompt} is very very long"),
        comparisons=(Comparison(0, 1),),
        source=f"devices:{number}",
    )
    for number, prompt in enumerate(PROMPTS)
)


def trained(name: str, device: torch.device) -> dict[str, float]:
    """Two iterations of two micro-batches, then an evaluation: loss, KL, answers and win rates."""
    tokenizer = tiny_tokenizer([*PROMPTS, "is fine very long"], vocab_size=300)
    oracle: Any = RuleOracle(shorter)
    if name == "maxmin":
        oracle = PanelOracle({"short": oracle, "other": RuleOracle(paper_scissors_stone)})
    with tempfile.TemporaryDirectory() as folder, pretended_gpu() if device == GPU else nullcontext():
        args = AlignmentArguments(
            output_dir=folder,
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_new_tokens=4,
            win_rate_max_new_tokens=4,
            learning_rate=1e-2,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        AlignmentArguments.device = property(lambda _: device)  # type: ignore[method-assign, assignment]
        PartialState._shared_state["device"] = device
        trainer = PreferenceTrainer(
            model=tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2),
            args=args,
            train_dataset=ROWS,
            eval_dataset=ROWS,
            processing_class=tokenizer,
            oracle=oracle,
            method={"name": name, **METHODS[name]},
        )
        trainer.train()
        assert {parameter.device for parameter in trainer.model.parameters()} == {device}
        return trainer.evaluate()


class _Backend(backend_registration._DummyBackendModule):  # type: ignore[misc]
    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, *_: Any) -> None:
        pass


def main() -> None:
    """Print what each method reaches on the CPU and here, and what a tensor that stayed behind is met with."""
    backend_registration._setup_privateuseone_for_python_backend("pretended", backend_module=_Backend())
    # The first backward pass decides for which devices torch has threads.
    devices = {"gpu": GPU, "cpu": torch.device("cpu")}
    metrics = {name: {key: trained(name, device) for key, device in devices.items()} for name in METHODS}
    own = dpo.differences
    dpo.differences = lambda values_BG: own(values_BG + torch.zeros(2))
    try:
        trained("dpo", GPU)
        planted = "nothing"
    except RuntimeError as error:
        planted = str(error)
    print(json.dumps({"metrics": metrics, "planted": planted}))


if __name__ == "__main__":
    main()
