"""Bradley-Terry on features: r(y) = w . phi(y), fitted in milliseconds.

The likelihood of the winners is logistic regression without intercept on differences of features; a ridge keeps it
finite where the pairs can be separated. Bradley & Terry, Biometrika 39 (1952) 324-345.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from alignment.errors import UserError
from alignment.rewards.em import log_sigmoid

Array = np.ndarray[Any, np.dtype[Any]]


class LinearBradleyTerry:
    """A component whose pairs are feature differences phi(winner) - phi(loser), [D].

    Args:
        num_features: D.
        ridge: lambda of the penalty lambda/2 |w|^2 on the sum of the log-losses, above 0; w has the prior variance
            1/lambda.
    """

    def __init__(self, num_features: int, *, ridge: float) -> None:
        if ridge <= 0:
            raise UserError(f"ridge: expected a number > 0, got {ridge}; separable pairs have no other finite answer")
        self.ridge = ridge
        self.weights_D = np.zeros(num_features)

    def fit(self, pairs: Sequence[Array]) -> None:
        """Minimise sum_n -log sigmoid(w . d_n) + lambda/2 |w|^2, which has one minimum."""
        differences_ND = np.stack(pairs)

        def objective(weights_D: Array) -> tuple[float, Array]:
            margins_N = differences_ND @ weights_D
            loss = -log_sigmoid(margins_N).sum() + 0.5 * self.ridge * (weights_D @ weights_D)
            return loss, -differences_ND.T @ expit(-margins_N) + self.ridge * weights_D

        self.weights_D = minimize(objective, self.weights_D, jac=True, method="L-BFGS-B").x

    def margins(self, pairs: Sequence[Array]) -> Array:
        """w . d, [N]."""
        return np.stack(pairs) @ self.weights_D

    def parameters(self) -> Array:
        """A copy of w."""
        return self.weights_D.copy()

    def restore(self, parameters: Array) -> None:
        """Go back to a copy of w."""
        self.weights_D = parameters
