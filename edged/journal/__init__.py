"""The memory of the daemon: requests and what was said, in SQLite, from acceptance to some time after the end."""

from edged.journal.errors import JournalBusy, JournalError, JournalFull
from edged.journal.store import Journal

__all__ = ["Journal", "JournalBusy", "JournalError", "JournalFull"]
