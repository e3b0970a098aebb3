"""A child as it should be: ready at once, answers every request with its own prompt, ends when the socket is closed.

Says of its `Load` the digest, and of every cancelled request nothing. The prompt `die` ends it with SIGKILL.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from edged.engine.protocol import Decoder, Finished, Generate, Load, Note, Ready, Step, encode

READY = Ready(context=512, parallel=2, threads=1, parameters=7, quantisation="Q4_0", digest="sha256:5e")


def main() -> None:
    decoder = Decoder()
    with socket.socket(fileno=int(sys.argv[-1])) as sock:
        while data := sock.recv(65536):
            for order in decoder.feed(data):
                if isinstance(order, Load):
                    sock.sendall(encode(Note("info", f"digest {order.digest!r}")) + encode(READY))
                elif isinstance(order, Generate):
                    if order.prompt == "die":
                        os.kill(os.getpid(), signal.SIGKILL)
                    done = Finished(order.uid, "stop")
                    sock.sendall(encode(Step(deltas=[(order.uid, order.prompt or "", [1])], finished=[done])))


if __name__ == "__main__":
    main()
