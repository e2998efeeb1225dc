"""What torch refuses on a GPU under ``torch.use_deterministic_algorithms(True)``, told without one."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Those of torch's list (in the docstring of that function) that losses, samplers and steps might come to use.
_REFUSED = {
    aten.put.default,
    aten.put_.default,
    aten.histc.default,
    aten.kthvalue.default,
    aten.median.dim,
    aten.nanmedian.dim,
    aten.nll_loss2d_forward.default,
}


def check_determined(function: Any, args: Any, kwargs: Any) -> None:
    """Raise where torch would, for what depends on the order in which a GPU's threads add."""
    refused = function in _REFUSED
    if function in (aten.cumsum.default, aten.cumsum_.default, aten.cumsum.out):
        refused = args[0].is_floating_point() or args[0].is_complex()
    elif function is aten.bincount.default:
        refused = len(args) > 1 or kwargs.get("weights") is not None
    elif function in (aten.scatter_reduce.two, aten.scatter_reduce_.two):
        refused = "prod" in (*args, *kwargs.values())
    if refused:
        raise RuntimeError(f"{function} does not have a deterministic implementation")


class Determined(TorchDispatchMode):
    """Refuses on the CPU what torch refuses on a GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check_determined(function, args, kwargs or {})
        return function(*args, **kwargs or {})
