"""Takes requests and sleeps over them until they are cancelled; the prompt `step` begins a step that never ends.

Tells of every order that has come.
"""

from __future__ import annotations

import signal
import socket
import sys

from edged.engine.protocol import Cancel, Decoder, Finished, Generate, Load, Note, Step, encode
from edged.engine.pulse import Pulse
from tests.engine.children.serves import READY


def main() -> None:
    decoder, pulse = Decoder(), Pulse(int(sys.argv[1]))
    with socket.socket(fileno=int(sys.argv[2])) as sock:
        while data := sock.recv(65536):
            for order in decoder.feed(data):
                if isinstance(order, Load):
                    sock.sendall(encode(READY))
                    continue
                in_step = isinstance(order, Generate) and order.prompt == "step"
                if in_step:
                    pulse.begin(0.1)
                sock.sendall(encode(Note("info", order.op)))
                if in_step:
                    signal.pause()
                if isinstance(order, Cancel):
                    sock.sendall(encode(Step(finished=[Finished(order.uid, "cancelled")])))


if __name__ == "__main__":
    main()
