"""What systemd is told: ready, stopping, a status line, and that the daemon still lives (sd_notify(3))."""

from __future__ import annotations

import os
import socket

#: systemd reads at once; where it does not, its notification must not hold the daemon up. Seconds.
_SEND_TIMEOUT_S = 1.0


class Notifier:
    """Sends notifications to `$NOTIFY_SOCKET`; without that, does nothing. May be used from any thread.

    Every method returns whether the notification was sent: a lost one is no reason to stop.
    """

    def __init__(self, address: str | None = None) -> None:
        """Take the address from the environment unless one is given.

        Args:
            address: the path of a datagram socket; with @ in front, a name in Linux's abstract namespace.
        """
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address

    def ready(self, status: str) -> bool:
        """Start-up is done; systemd starts what waits for this unit."""
        return self._send("READY=1", f"STATUS={_one_line(status)}")

    def stopping(self, status: str) -> bool:
        """Shutdown has begun."""
        return self._send("STOPPING=1", f"STATUS={_one_line(status)}")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> bool:
        """The daemon lives. To be called where that is known, at least every `watchdog_interval_s()`."""
        return self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> bool:
        if not self._address.startswith(("/", "@")):
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_SEND_TIMEOUT_S)
            try:
                sender.sendto("\n".join(lines).encode(errors="replace"), address)
            except OSError:
                return False
        return True


def watchdog_interval_s() -> float | None:
    """How often systemd wants to hear `watchdog()`, in seconds: half of its limit, as sd_watchdog_enabled(3) advises.

    None where it does not want to: the unit has no WatchdogSec=, or it watches another process.
    """
    limit, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not limit.isdecimal() or int(limit) == 0 or (pid is not None and pid != str(os.getpid())):
        return None
    return int(limit) / 1_000_000 / 2


def _one_line(text: str) -> str:
    """A newline would begin another assignment."""
    return " ".join(text.split())
