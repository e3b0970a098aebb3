"""`make run`: a broker and the daemon in the foreground, until Ctrl-C.

usage: python -m deploy.run DIRECTORY    (for logs and the daemon's state; made where it is missing)
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from deploy.stack import HOST, MQTT_PORT, POLL_S, StackError, broker, daemon, shown, signals_end_the_block
from edged.wire import Kind, Topics

#: What the node is called unless EDGED_NODE__NAME says otherwise.
NODE = "edge"


def serve(directory: Path, node: str) -> None:
    """Run both until one of them ends.

    Raises:
        StackError: one of them did not start, or ended by itself.
    """
    topics = Topics(node)
    with broker(directory, prefer=MQTT_PORT) as (mosquitto, port):
        where = ["-h", HOST, "-p", str(port)]
        if port != MQTT_PORT:
            print(f"edged: port {MQTT_PORT} is taken, perhaps by a broker of this machine; using {port}")
        print("edged: once the model is ready (the daemon says so below), in two other terminals:\n")
        print("  " + shown(["mosquitto_sub", *where, "-v", "-t", topics.filter(Kind.REPLY)]))
        print("  " + shown(["mosquitto_pub", *where, "-t", f"{topics.base}/{Kind.REQ}", "-m", "Hello! Who are you?"]))
        print("\nedged: Ctrl-C ends both\n", flush=True)
        with daemon(directory, node=node, port=port, log=None) as edged:
            while True:
                mosquitto.check()
                edged.check()
                time.sleep(POLL_S * 10)


def main() -> int:
    """Serve until Ctrl-C, which is the ordinary end: 0."""
    signals_end_the_block()
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        serve(directory, os.environ.get("EDGED_NODE__NAME") or NODE)
    except StackError as error:
        print(f"edged: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nedged: daemon and broker are stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
