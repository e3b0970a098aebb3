"""Sends half a frame and dies."""

import socket
import sys

from edged.engine.protocol import Failed, encode

with socket.socket(fileno=int(sys.argv[-1])) as sock:
    frame = encode(Failed("never to be heard"))
    sock.sendall(frame[: len(frame) // 2])
