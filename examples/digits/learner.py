"""An agent that learns one digit from images, one at a time, and whose model is its durable
state."""

from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from holdfast import Agent, State, handler, reader

PIXELS = 64
RATE = 0.05


class Model(State):
    """Logistic regression: ``weights`` has one number per pixel and a last one, the bias."""

    weights: NDArray[np.float64] = msgspec.field(default_factory=lambda: np.zeros(PIXELS + 1))
    seen: int = 0


class Learner(Agent[Model], capabilities={"digits"}):
    """Tells one digit from the others."""

    @handler
    async def learn(self, pixels: NDArray[np.float64], is_mine: bool) -> int:
        """One step of stochastic gradient descent; return how many images were learnt from."""
        inputs = np.append(pixels, 1.0)
        error = is_mine - 1.0 / (1.0 + np.exp(-inputs @ self.state.weights))
        self.state.weights += RATE * error * inputs
        self.state.seen += 1
        return self.state.seen

    @reader
    async def seen(self) -> int:
        """How many images were learnt from."""
        return self.state.seen

    @reader
    async def score(self, images: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each image looks like the digit. ``images`` has the shape (n, 64), the answer
        (n,)."""
        return images @ self.state.weights[:-1] + self.state.weights[-1]

    @reader
    async def weights(self) -> NDArray[np.float64]:
        """The model, of the shape (65,)."""
        return self.state.weights


@cache
def digits() -> tuple[Any, Any, Any, Any]:
    """scikit-learn's 1,797 bundled images: training images and labels, held-out images and
    labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = data.data / 16.0, data.target
    held_out = len(images) // 5
    return images[:-held_out], labels[:-held_out], images[-held_out:], labels[-held_out:]
