"""Cannot load its model, and says why; its first arguments may be the sentence and the error."""

import socket
import sys

from edged.engine.protocol import Failed, encode

says = sys.argv[1:-2] or ["llama.cpp cannot load 'x.gguf': it is a picture"]
with socket.socket(fileno=int(sys.argv[-1])) as sock:
    sys.stderr.write("no such tensor\n")
    sock.sendall(encode(Failed(*says)))
