"""The process that hosts the ten learners on an embedded log, and teaches them: the one that will
be killed.

`python worker.py FILE` says on its standard output how many steps were acknowledged since it
started.
"""

import sys

from learner import Learner
from train import train

from holdfast import Node, run


async def main(path: str) -> None:
    acknowledged = 0

    def count(_digit: int) -> None:
        nonlocal acknowledged
        acknowledged += 1
        if acknowledged == 1 or acknowledged % 50 == 0:
            print(acknowledged, flush=True)

    async with Node.join(f"local:{path}", serve=[Learner]) as node:
        await train(node, count)
    print(acknowledged, flush=True)


if __name__ == "__main__":
    run(main(sys.argv[1]))
