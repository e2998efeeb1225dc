"""Means of a loop's figures between two logs, over prompts and ranks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Means:
    """Weighted means of named figures, until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, values: Mapping[str, Tensor], weights_B: Tensor) -> None:
        """Figures of prompts, [B] each; one that is nan does not count."""
        for name, value_B in values.items():
            total, weight = self._sums.get(name, (0.0, 0.0))
            counted = weights_B * ~value_B.isnan()
            self._sums[name] = (
                total + float((counted * value_B.nan_to_num()).sum()),
                weight + float(counted.sum()),
            )

    def take(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """All means since the last call.

        Args:
            total: sums a tensor over ranks, which have the same names.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        sums = total(torch.tensor([self._sums.pop(name) for name in names], dtype=torch.float32))
        return dict(zip(names, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
