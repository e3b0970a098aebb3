"""Requantised files: which types are worth a try, and where they are kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from edged.engine import files
from edged.tune.child import Trials
from edged.tune.search import TrialFailed

#: Bits that a weight takes in the types that are tried.
_BITS = {"Q4_0": 4.5, "IQ4_NL": 4.5, "Q8_0": 8.5}
#: A file may grow so many times: Q8_0 made of 4 bits is faster on some machines, of 2 bits it is only large.
_MOST_GROWTH = 2.0
#: Room that is left on the disk, as a multiple of the new file.
_ROOM = 1.1
#: The parts of a model that comes in several files: llama.cpp's naming.
_PART = re.compile(r"-\d{5}-of-\d{5}$")


def worth_trying(source: files.ModelFile, kinds: Iterable[str], parameters: int) -> list[str]:
    """The types that the source may be made into.

    None for a file whose type is fast already and whose weights have 4 bits: only quality would be lost. None for one
    part of several.

    Args:
        source: what the file says of itself.
        kinds: what this CPU could be served with.
        parameters: weights of the model.
    """
    if source.quantisation in ("Q4_0", "IQ4_NL") or _PART.search(source.path.stem):
        return []
    return [
        kind
        for kind in kinds
        if kind in _BITS and kind != source.quantisation and _size(kind, parameters) <= _MOST_GROWTH * source.size
    ]


def _size(kind: str, parameters: int) -> int:
    return int(parameters * _BITS[kind] / 8)


class Workshop:
    """Makes requantised files of one source, and takes away those that were made for nothing.

    Args:
        source: what the file says of itself.
        directory: where the new ones are kept; it is created.
        parameters: weights of the model.
        threads: CPU threads.
    """

    def __init__(
        self, trials: Trials, source: files.ModelFile, directory: Path, *, parameters: int, threads: int
    ) -> None:
        self._trials = trials
        self._source = source
        self._directory = directory
        self._parameters = parameters
        self._threads = threads
        self._digest = ""
        self._made: list[Path] = []

    def path(self, kind: str) -> Path:
        """Where the file of a type is kept. Its name has the source's digest, so that it is never of another source."""
        if not self._digest:
            self._digest = files.digest(self._source.path).removeprefix("sha256:")[:12]
        stem = self._source.path.stem
        for separator in ".-_":
            stem = stem.removesuffix(f"{separator}{self._source.quantisation}")
        return self._directory / f"{stem}.{kind}.{self._digest}.gguf"

    def make(self, kind: str) -> files.ModelFile:
        """The file of that type, made unless it is there.

        Raises:
            TrialFailed: it cannot be made, or written.
        """
        try:
            path = self.path(kind)
            if not self._directory.is_dir():
                self._directory.mkdir(parents=True)
                self._directory.chmod(0o755)  # the daemon's user is another one, whatever root's umask says
            if not path.is_file():
                self._make(kind, path)
            return files.describe(path)
        except OSError as error:
            raise TrialFailed(
                f"the {kind} file cannot be kept in {str(self._directory)!r}: {error.strerror}; its place is beside "
                "the journal: see journal.path in the settings, and STATE_DIRECTORY"
            ) from error
        except files.ModelFileError as error:
            raise TrialFailed(f"{error}; remove it, and it is made anew") from error

    def _make(self, kind: str, path: Path) -> None:
        needed, free = _ROOM * _size(kind, self._parameters), shutil.disk_usage(self._directory).free
        if free < needed:
            raise TrialFailed(
                f"the {kind} file needs about {needed / 1e6:.0f} MB in {str(self._directory)!r}, where "
                f"{free / 1e6:.0f} MB are free"
            )
        for left in self._directory.iterdir():
            if left.name.startswith(f".{path.name}.") and not Path("/proc", left.suffix[1:]).exists():
                left.unlink()  # of one that was killed while it worked
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._trials.run(
                {
                    "op": "requantise",
                    "source": str(self._source.path),
                    "target": str(unfinished),
                    "type": kind,
                    "threads": self._threads,
                }
            )
            unfinished.chmod(0o644)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
        self._made.append(path)

    def clear(self, *, keep: Path | None) -> None:
        """Remove the files that were made here, but for one. What was there before stays."""
        for path in self._made:
            if path != keep:
                path.unlink(missing_ok=True)
        self._made = []
