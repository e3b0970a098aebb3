"""Cannot load its model, and says why."""

import socket
import sys

from edged.engine.protocol import Failed, encode

with socket.socket(fileno=int(sys.argv[-1])) as sock:
    sys.stderr.write("no such tensor\n")
    sock.sendall(encode(Failed("llama.cpp cannot load 'x.gguf': it is a picture")))
