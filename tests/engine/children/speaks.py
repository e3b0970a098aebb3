"""Generates for many requests together, a token of each in every turn: its number. A prompt can be poison.

A request whose prompt is `poison` ends this process with SIGABRT at its twentieth token, in the middle of all others.
Arguments: a file that gets a line with every start, the number of the page, the number of the socket.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from edged.engine.channel import Channel
from edged.engine.protocol import Finished, Generate, Load, Order, Ready, Step

_FATAL = 20
#: How long a turn takes, seconds.
_TURN_S = 0.01


class Speaker:
    """The requests, and how far each is."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._asked: dict[int, Generate] = {}
        self._said: dict[int, int] = {}

    def run(self) -> None:
        while (orders := self._channel.orders(wait=not self._asked)) is not None:
            for order in orders:
                self._obey(order)
            time.sleep(_TURN_S)
            self._turn()

    def _obey(self, order: Order) -> None:
        if isinstance(order, Load):
            self._channel.send(
                Ready(context=512, parallel=8, threads=1, parameters=7, quantisation="Q4_0", digest="sha256:5e")
            )
        elif isinstance(order, Generate):
            self._asked[order.uid], self._said[order.uid] = order, len(order.generated)
        elif order.uid in self._asked:
            self._channel.send(Step(finished=[self._end(order.uid, "cancelled")]))

    def _turn(self) -> None:
        step = Step()
        for uid, order in list(self._asked.items()):
            number = self._said[uid]
            if order.prompt == "poison" and number == _FATAL:
                os.abort()
            step.deltas.append((uid, f"{number} ", [number]))
            self._said[uid] = number + 1
            if self._said[uid] >= order.max_tokens:
                step.finished.append(self._end(uid, "length"))
        if step.deltas:
            self._channel.send(step)

    def _end(self, uid: int, reason: str) -> Finished:
        del self._asked[uid]
        return Finished(uid, reason, completion_tokens=self._said.pop(uid))


def main() -> None:
    with Path(sys.argv[1]).open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    with socket.socket(fileno=int(sys.argv[3])) as sock:
        Speaker(Channel(sock)).run()


if __name__ == "__main__":
    main()
