"""Which model is tuned: one of the configuration, or a file that is not in it yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.config import ConfigError, Settings, Sources
from edged.config.settings import Model
from edged.engine import files
from edged.tune import edit


@dataclass(frozen=True, slots=True)
class Subject:
    """The model, and where its settings stand.

    Attributes:
        index: of its `[[models]]` in the configuration file; None where it has none there.
        config: the configuration file; None where there is none.
        before: what that file says.
        overruled: the models come from the environment, and what the file says of them does not count.
    """

    settings: Settings
    model: Model
    file: files.ModelFile
    index: int | None
    config: Path | None
    before: dict[str, Any]
    overruled: bool

    @classmethod
    def find(cls, name: str | None, sources: Sources) -> Subject:
        """The model that is called so: by alias, or by a file's path; without a name the first.

        Raises:
            ConfigError: the settings are wrong, or there is no such model.
            ModelFileError: its file cannot be used.
        """
        settings = sources.settings()
        overruled = "models" in sources.environment
        written = [] if overruled else sources.file.get("models", [])
        place = _place(name, settings)
        model = settings.models[place] if place is not None else _beside(name or "", settings)
        return cls(
            settings=settings,
            model=model,
            file=files.describe(files.resolve(model.path)),
            index=place if place is not None and place < len(written) else None,
            config=sources.path,
            before=dict(sources.file),
            overruled=overruled,
        )

    def check_writable(self) -> None:
        """Prove that the changes could be written.

        Raises:
            ConfigError: with what to do, if not.
        """
        if self.config is None:
            raise ConfigError(
                "--write: there is no configuration file; make one with `edged config > edged.toml`, and name it with "
                "--config edged.toml"
            )
        if self.overruled:
            raise ConfigError(
                f"--write: the models come from the environment ($EDGED_MODELS), which wins over {self.config}; take "
                "the variable away, or leave out --write and change it by hand"
            )
        edit.check_writable(self.config)

    def complete(self, changes: dict[str, str | int]) -> dict[str, str | int]:
        """The changes as the configuration needs them: a section that is new says as well which model it is."""
        if self.index is None and changes:
            return {"alias": self.model.alias, "path": self.model.path} | changes
        return changes

    def write(self, changes: edit.Changes) -> str:
        """Write the changes; returns a sentence about it.

        Raises:
            ConfigError: it cannot be done.
        """
        if self.config is None:
            raise ConfigError("--write: there is no configuration file")
        edit.write(self.config, self.before, self.index, changes)
        if self.index is None:
            return f"added to {self.config}: [[models]] {self.model.alias}, with {_listed(changes)}"
        return f"changed in {self.config}, [[models]] {self.model.alias}: {_listed(changes)}"


def _place(name: str | None, settings: Settings) -> int | None:
    """Where in the settings' models that one is."""
    if name is None:
        return 0
    aliases = [model.alias for model in settings.models]
    if name in aliases:
        return aliases.index(name)
    wanted = _found(name)
    for i, model in enumerate(settings.models):
        if name == model.path or (wanted and (known := _found(model.path)) and wanted.samefile(known)):
            return i
    return None


def _found(path: str) -> Path | None:
    """The file there, if it can be read."""
    try:
        return files.resolve(path)
    except files.ModelFileError:
        return None


def _beside(path: str, settings: Settings) -> Model:
    """A model for a file that is none of the settings' models."""
    try:
        file = files.resolve(path)
    except files.ModelFileError as error:
        aliases = ", ".join(known.alias for known in settings.models)
        raise ConfigError(f"{path}: no model has this alias (there are: {aliases}), and {error}") from None
    # what is written down must mean the same file wherever the daemon is started
    model = Model(path=path if path == files.STARTER else str(file.absolute()))
    if any(known.alias == model.alias for known in settings.models):
        raise ConfigError(
            f"{path}: another model is called {model.alias!r} in the settings, and this file would be; give it another "
            "name, or a section of its own with an alias"
        )
    return model


def _listed(changes: edit.Changes) -> str:
    return ", ".join(f"{key} = {value}" for key, value in changes.items())
