"""Is ready, and never reads, nor notices that its socket was closed; SIGTERM does not end it either."""

import signal
import socket
import sys

from edged.engine.protocol import encode
from tests.engine.children.serves import READY

signal.signal(signal.SIGTERM, signal.SIG_IGN)
with socket.socket(fileno=int(sys.argv[-1])) as sock:
    sock.sendall(encode(READY))
    while True:
        signal.pause()
