"""Serves until it is asked to hang, in the way that its first argument names; a new child after that would do the same.

Arguments: how, the number of the page, the number of the socket.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time

from edged.engine.protocol import Decoder, Finished, Generate, Load, Note, Step, encode
from edged.engine.pulse import Pulse
from tests.engine.children.serves import READY

#: How long a step takes that is longer than the test's patience with one of which nothing is known, seconds.
LONG_S = 2.5


def spin(until: float = float("inf")) -> None:
    while time.monotonic() < until:
        pass


def hang(how: str, pulse: Pulse, sock: socket.socket, uid: int) -> Finished:
    match how:
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "wait in a step":
            pulse.begin(0.1)
            signal.pause()
        case "spin in a step":
            pulse.begin(0.1)
            spin()
        case "spin in an unknown step":
            pulse.begin(None)
            spin()
        case "spin in a long step":
            pulse.begin(LONG_S)
            spin(time.monotonic() + LONG_S)
            pulse.end()
        case "spin":
            spin()
        case "until aborted" | "short steps" | "again":
            pulse.calm()
            pulse.begin(0.001 if how == "short steps" else 10.0, again=how == "again")
            sock.sendall(encode(Note("info", "in a step")))
            flag, end = pulse.abort_flag, time.monotonic() + (60 if how == "until aborted" else 0.3)
            while time.monotonic() < end:
                time.sleep(0.005)
                if pulse_is_set(flag):
                    return Finished(uid, "cancelled")
    return Finished(uid, "stop")


def pulse_is_set(address: int) -> bool:
    return bool(ctypes.string_at(address))


def main() -> None:
    how, decoder = sys.argv[1], Decoder()
    pulse = Pulse(int(sys.argv[2]))
    with socket.socket(fileno=int(sys.argv[3])) as sock:
        while data := sock.recv(65536):
            for order in decoder.feed(data):
                if isinstance(order, Load):
                    if how == "load":
                        signal.pause()
                    sock.sendall(encode(READY))
                elif isinstance(order, Generate):
                    done = Finished(order.uid, "stop")
                    if order.prompt == "hang":
                        done = hang(how, pulse, sock, order.uid)
                    sock.sendall(encode(Step(finished=[done])))


if __name__ == "__main__":
    main()
