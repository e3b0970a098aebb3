"""What a request has been answered so far: its text, the tokens behind it, and the part that nobody has been told."""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field

#: Text that waits to be published, bytes of UTF-8: with more the engine is asked to hold on, below half of it to go on.
_MAX_WAITING = 64 * 1024


@dataclass(slots=True)
class Answer:
    """The text of one generation.

    Attributes:
        tokens: what the engine has given it, as far as there was text to it.
        chars, bytes, crc32: of all its text: code points, bytes of UTF-8, zlib's checksum of those.
        waiting_tokens, waiting_bytes: of the text that waits to be said.
    """

    tokens: list[int] = field(default_factory=list)
    chars: int = 0
    bytes: int = 0
    crc32: int = 0
    waiting_tokens: int = 0
    waiting_bytes: int = 0
    _parts: list[str] = field(default_factory=list)
    _waiting: deque[tuple[str, tuple[int, ...]]] = field(default_factory=deque)

    def __bool__(self) -> bool:
        """Whether any text waits."""
        return bool(self._waiting)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._parts)

    @property
    def is_far_ahead(self) -> bool | None:
        """Whether so much text waits that nothing more should be generated; None = neither nor."""
        if self.waiting_bytes > _MAX_WAITING:
            return True
        return False if self.waiting_bytes <= _MAX_WAITING // 2 else None

    def add(self, text: str, tokens: tuple[int, ...]) -> None:
        """More of it, that waits to be said."""
        self._waiting.append((text, tokens))
        self.waiting_tokens += len(tokens)
        self.waiting_bytes += self.recall(text, tokens)

    def recall(self, text: str, tokens: tuple[int, ...]) -> int:
        """More of it, that was said before; returns its bytes."""
        raw = text.encode()
        self._parts.append(text)
        self.tokens += tokens
        self.chars += len(text)
        self.bytes += len(raw)
        self.crc32 = zlib.crc32(raw, self.crc32)
        return len(raw)

    def take(self, max_bytes: int) -> tuple[str, tuple[int, ...]]:
        """Take out so much of the text that waits, but at least what came together; and the tokens behind it."""
        texts: list[str] = []
        tokens: list[int] = []
        size = 0
        while self._waiting:
            length = len(self._waiting[0][0].encode())
            if texts and size + length > max_bytes:
                break
            text, behind = self._waiting.popleft()
            texts.append(text)
            tokens += behind
            size += length
        self.waiting_bytes -= size
        self.waiting_tokens -= len(tokens)
        return "".join(texts), tuple(tokens)
