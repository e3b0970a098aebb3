"""Loads as llama.cpp does on a processor that it was not compiled for: it ends by SIGILL.

Its first argument tells for which loads, `repacked` or `all`. Otherwise it is ready, and waits for its end.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from edged.engine.protocol import Decoder, Load, encode
from tests.engine.children.serves import READY

with socket.socket(fileno=int(sys.argv[-1])) as sock:
    decoder = Decoder()
    while data := sock.recv(65536):
        for order in decoder.feed(data):
            if isinstance(order, Load) and (order.repack or sys.argv[1] == "all"):
                os.kill(os.getpid(), signal.SIGILL)
            sock.sendall(encode(READY))
