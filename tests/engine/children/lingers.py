"""Serves until it is asked for something; then closes its socket, and does not end."""

import signal
import socket
import sys

from edged.engine.protocol import Decoder, Generate, encode
from tests.engine.children.serves import READY

decoder = Decoder()
with socket.socket(fileno=int(sys.argv[-1])) as sock:
    sock.sendall(encode(READY))
    while not any(isinstance(order, Generate) for order in decoder.feed(sock.recv(65536))):
        pass
signal.pause()
