"""Sends the bytes of its first argument (hex), then waits for ever."""

import signal
import socket
import sys

with socket.socket(fileno=int(sys.argv[-1])) as sock:
    sock.sendall(bytes.fromhex(sys.argv[1]))
    signal.pause()
