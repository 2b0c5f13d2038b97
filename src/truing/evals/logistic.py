"""Logistic regression without intercept on targets in [0, 1], for many weightings of the same rows at once.

What a bootstrap of win rates and ratings refits a thousand times: one array operation does all draws. No other model is here.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "row feature"]
RowWeights = Float[np.ndarray, "draw row"]
Coefficients = Float[np.ndarray, "draw feature"]
MAX_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Logistic:
    """Rows of features with the share of wins of each. Example: `Logistic(features=x, target=p).ridge(weights, prior_sd=5.0)`."""

    features: Features
    target: Float[np.ndarray, " row"]

    def l1(self, weights: RowWeights, penalty: float, start: Float[np.ndarray, "one feature"] | None = None) -> Coefficients:
        """min |w|_1 + C sum s (log(1 + e^z) - p z), z = x w, by proximal Newton with coordinate descent inside.

        A start near the minimum, as the fit of all rows is for a resample of them, spares the search for the size of a step.
        """
        w = np.zeros((len(weights), self.features.shape[1])) if start is None else np.repeat(start, len(weights), axis=0)
        for _ in range(MAX_STEPS):
            gradient, hessian = self._derivatives(weights, w)
            step = _descend(w, penalty * gradient, penalty * hessian) - w
            w = w + (step if start is not None else self._size(weights, w, step, penalty) * step)
            if np.abs(step).max() < 1e-6:
                return w
        return w

    def ridge(self, weights: RowWeights, *, prior_sd: float | Float[np.ndarray, " feature"]) -> Coefficients:
        """The maximum of the likelihood times a normal prior of that deviation on each coefficient, by Newton."""
        precision = np.broadcast_to(1.0 / np.square(prior_sd), (self.features.shape[1],))
        w = np.zeros((len(weights), self.features.shape[1]))
        for _ in range(MAX_STEPS):
            gradient, hessian = self._derivatives(weights, w)
            step = np.linalg.solve(hessian + np.diag(precision), (gradient + precision * w)[:, :, None])[:, :, 0]
            # A Newton step of a logistic fit overshoots where all is won; two logits at a time cannot.
            step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-300))
            w = w - step
            if np.abs(step).max() < 1e-8:
                return w
        return w

    def losses(self, w: Coefficients) -> RowWeights:
        """log(1 + e^z) - p z of every row under every fit: the cross-entropy."""
        z = w @ self.features.T
        return np.asarray(np.logaddexp(0, z) - self.target * z)

    def _derivatives(self, weights: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = sigmoid(w @ self.features.T)
        gradient = (weights * (p - self.target)) @ self.features
        width = self.features.shape[1]
        products = (self.features[:, :, None] * self.features[:, None, :]).reshape(-1, width * width)
        return gradient, ((weights * p * (1 - p)) @ products).reshape(-1, width, width)

    def _size(self, weights: np.ndarray, w: np.ndarray, step: np.ndarray, penalty: float) -> np.ndarray:
        """How much of each step makes nothing worse."""
        size, before = np.ones((len(w), 1)), self._objective(weights, w, penalty)
        for _ in range(20):
            worse = self._objective(weights, w + size * step, penalty) > before + 1e-12 * np.abs(before)
            if not worse.any():
                break
            size[worse] /= 2
        return size

    def _objective(self, weights: np.ndarray, w: np.ndarray, penalty: float) -> np.ndarray:
        return np.asarray(np.abs(w).sum(1) + penalty * (weights * self.losses(w)).sum(1))


def _descend(w: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Minimiser of the quadratic model plus |.|_1, coordinate by coordinate."""
    new = w.copy()
    for _ in range(200):
        largest = 0.0
        for j in range(w.shape[1]):
            curve = hessian[:, j, j] + 1e-12
            slope = gradient[:, j] + ((new - w) * hessian[:, j]).sum(1)
            aim = new[:, j] - slope / curve
            moved = np.sign(aim) * np.maximum(np.abs(aim) - 1 / curve, 0.0)
            largest = max(largest, float(np.abs(moved - new[:, j]).max()))
            new[:, j] = moved
        if largest < 1e-10:
            break
    return new


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-z) without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -z)))
