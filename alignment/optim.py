"""Extragradient as a wrapper around any optimizer: look ahead, come back, take the real step."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class ExtraGradient(Optimizer):
    """Two stages per iteration: stage 0 takes a look-ahead step, stage 1 returns and steps from the starting point.

    The stage is set by the caller before each backward pass and never inferred from a count of calls: distributed
    engines step once at initialisation and once per shard. ``stage is None`` passes steps through.

    Two uses of the second stage. Textbook extragradient takes the gradient at the look-ahead point: compute it there
    and call ``step``, which returns by itself. EGPO takes only its opponent from the look-ahead point and the gradient
    at the start: sample there, call ``rewind``, then compute the gradient and ``step``.

    Args:
        inner: the optimizer that takes the steps; its parameter groups and state are shared, so that schedulers and
            checkpoints see one optimizer. Its state counts real steps only.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = ExtraGradient(torch.optim.SGD([weight], lr=0.5))
        >>> for optimizer.stage in (0, 1):  # minimise weight^2 / 2
        ...     weight.grad = weight.detach().clone()
        ...     optimizer.step()
        >>> weight.item()  # 1 - 0.5 * (1 - 0.5 * 1)
        0.75
    """

    num_stages = 2

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.stage: int | None = None
        self._start: dict[Tensor, tuple[Tensor, dict[str, Any]]] = {}
        super().__init__(inner.param_groups, inner.defaults)
        # One list of groups and one state, whoever looks.
        self.param_groups = inner.param_groups
        self.state = inner.state

    def rewind(self) -> None:
        """Put parameters and inner state back to where the look-ahead step started, bit for bit; idle if done."""
        with torch.no_grad():
            for parameter, (value, state) in self._start.items():
                parameter.copy_(value)
                if state:
                    self.inner.state[parameter] = state
                else:
                    self.inner.state.pop(parameter, None)
        self._start.clear()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the inner optimizer, as the stage asks. Closures are refused: they would hide the stage."""
        assert closure is None, "ExtraGradient takes no closure"
        # DeepSpeed puts one group at a time in place of all, while the others may have their gradients already.
        every_group, self.inner.param_groups = self.inner.param_groups, self.param_groups
        try:
            return self._step_groups()
        finally:
            self.inner.param_groups = every_group

    def _step_groups(self) -> float | None:
        if self.stage == 0:
            for group in self.inner.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        state = self.inner.state.get(parameter, {})
                        self._start[parameter] = (parameter.detach().clone(), _copied(state))
        elif self.stage == 1:
            self.rewind()
        return self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        """State of the inner optimizer. Only between iterations: a look-ahead point is not worth keeping."""
        assert not self._start, "checkpoints are taken after the last stage of an iteration"
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the inner optimizer."""
        self.inner.load_state_dict(state_dict)
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
