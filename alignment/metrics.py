"""Means of a loop's figures between two logs, over prompts and ranks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Means:
    """Weighted means of named figures, until they are taken."""

    def __init__(self) -> None:
        # Tensors where they came from: a number of each would be waited for in every step.
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor], weights_B: Tensor) -> None:
        """Figures of prompts, [B] each; one that is nan does not count."""
        for name, value_B in values.items():
            counted_B = weights_B * ~value_B.isnan()
            pair = torch.stack([(counted_B * value_B.nan_to_num()).sum(), counted_B.sum()]).detach().float()
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def take(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """All means since the last call.

        Args:
            total: sums a tensor over ranks, which have the same names.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        sums = total(torch.stack([self._sums.pop(name) for name in names]))
        return dict(zip(names, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
