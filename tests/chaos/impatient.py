"""`edged` as it is, but for the pauses between two attempts to reach the broker: always a fifth of a second.

They grow to a minute where connections do not hold, which is right for a network, and too long for a storm that cuts
every connection within seconds.
"""

from __future__ import annotations

from unittest.mock import patch

from edged.cli import main
from edged.mqtt.connection import Connection

_PAUSE_S = 0.2

if __name__ == "__main__":
    with patch.object(Connection, "_pause", lambda _self, _failures: _PAUSE_S):
        main()
