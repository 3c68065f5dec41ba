"""Feed the images to ten learners, in order, each from where it stands."""

import asyncio
from collections.abc import Callable

import numpy as np
from learner import Learner, digits
from numpy.typing import NDArray

from holdfast import Node

EPOCHS = 2


def total() -> int:
    """How many images are learnt from, by all ten."""
    return len(digits()[0]) * EPOCHS * 10


async def train(node: Node, acknowledged: Callable[[int], None]) -> None:
    """Teach the ten until each has seen everything. ``acknowledged`` hears of each step that is
    durable: its digit."""
    images, labels, _, _ = digits()

    async def teach(digit: int) -> None:
        learner = node.agent(Learner, f"digit-{digit}")
        for index in range(await learner.ask(Learner.seen), len(images) * EPOCHS):
            place = index % len(images)
            await learner.ask(Learner.learn, images[place], bool(labels[place] == digit))
            acknowledged(digit)

    await asyncio.gather(*(teach(digit) for digit in range(10)))


async def judge(node: Node) -> tuple[float, list[NDArray[np.float64]], int]:
    """The accuracy on the held-out images, the ten models, and how many images were learnt from."""
    _, _, images, labels = digits()
    learners = [node.agent(Learner, f"digit-{digit}") for digit in range(10)]
    scores = await asyncio.gather(*(learner.ask(Learner.score, images) for learner in learners))
    weights = await asyncio.gather(*(learner.ask(Learner.weights) for learner in learners))
    seen = await asyncio.gather(*(learner.ask(Learner.seen) for learner in learners))
    accuracy = float(np.mean(np.argmax(np.array(scores), axis=0) == labels))
    return accuracy, list(weights), sum(seen)
