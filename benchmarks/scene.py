"""What every scenario is given: the settings, a place for files, and how much time it may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import BenchmarkError
from edged.config import Settings
from edged.engine.cores import usable_cores
from edged.engine.files import describe, resolve
from edged.engine.requantise import RequantiseError, requantise

#: The form of a file that llama.cpp repacks for the CPU when it loads it.
REPACKED = "Q4_0"


@dataclass(frozen=True, slots=True)
class Form:
    """One file of the model that is measured.

    Attributes:
        name: its quantisation.
        settings: the daemon's, with this file as the only model's.
    """

    name: str
    file: Path
    settings: Settings

    def with_model(self, **changes: object) -> Settings:
        """The settings with something else said of the model."""
        model = self.settings.models[0].model_copy(update=changes)
        return self.settings.model_copy(update={"models": (model,)})


@dataclass(frozen=True, slots=True)
class Scene:
    """The circumstances of a run.

    Attributes:
        settings: what the environment and $EDGED_CONFIG say; one model.
        directory: for logs, state and files of this run.
        streams: numbers of streams that are compared.
        repeats: of what is measured more than once.
        seconds: roughly, of one measurement of throughput.
        patience_s: spent in all on waiting for a quiet machine, seconds.
        quick: a first look: the scenarios take as little time as they can.
        repacked: measure the Q4_0 form as well.
    """

    settings: Settings
    directory: Path
    streams: tuple[int, ...] = (1, 2, 4, 8, 16)
    repeats: int = 2
    seconds: float = 3.0
    patience_s: float = 0.0
    quick: bool = False
    repacked: bool = True

    @property
    def form(self) -> Form:
        """The file as it is configured.

        Raises:
            ModelFileError: there is none.
        """
        file = resolve(self.settings.models[0].path)
        return Form(describe(file).quantisation or "unknown", file, self.settings)

    def forms(self) -> list[Form]:
        """The file as it is configured, and as Q4_0, which is made of it once a run.

        Raises:
            BenchmarkError: llama.cpp cannot requantise it.
            ModelFileError: there is none.
        """
        plain = self.form
        if not self.repacked or plain.name == REPACKED:
            return [plain]
        file = self.directory / f"{plain.file.stem}.as-{REPACKED}.gguf"
        if not file.exists():
            try:
                requantise(plain.file, file, REPACKED, threads=usable_cores(), on_tensor=lambda: None)
            except RequantiseError as error:
                raise BenchmarkError(str(error)) from error
        return [plain, Form(REPACKED, file, plain.with_model(path=str(file)))]

    def place(self, name: str) -> Path:
        """A directory of its own for a part of the run."""
        place = self.directory / name
        place.mkdir(parents=True, exist_ok=True)
        return place
