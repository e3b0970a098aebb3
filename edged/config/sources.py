"""Where settings are read from: the command line wins over the environment, that over the file, that over defaults."""

from __future__ import annotations

import os
import stat
import sys
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from edged.config.environment import FILE_VARIABLE, variables
from edged.config.errors import ConfigError
from edged.config.problems import sentences, suggestion
from edged.config.settings import CREDENTIAL, Settings, credential

#: Read where no other file is named, if it is there.
DEFAULT_FILE = Path("/etc/edged/edged.toml")

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """What was found where, before it is checked.

    Attributes:
        explicit: by section and key, from the command line.
        environment: by section and key.
        variables: the environment variables' names by the place they set.
        file: the TOML file's content.
        path: the file that was read; None where there is none.
        named: whether the operator asked for that file; else it is the one in /etc.
        warnings: sentences on what was passed over.
    """

    explicit: Mapping[str, Any]
    environment: Mapping[str, Any]
    variables: Mapping[tuple[str, ...], str]
    file: Mapping[str, Any]
    path: Path | None
    named: bool = False
    warnings: tuple[str, ...] = ()

    @classmethod
    def gather(
        cls,
        config: Path | None = None,
        *,
        explicit: Mapping[str, Mapping[str, Any]] | None = None,
        forgiving: bool = False,
    ) -> Sources:
        """Read the environment and the file.

        Args:
            config: the file; else $EDGED_CONFIG; else /etc/edged/edged.toml, if it exists.
            explicit: values by section and key that win over all else; None means not given.
            forgiving: pass over the file in /etc with a warning where it cannot be read, as is right for consumers.

        Raises:
            ConfigError: a named file is missing, a file cannot be read, or a variable is no setting.
        """
        found, warnings = variables()
        by_variable = os.environ.get(FILE_VARIABLE)
        named = config or (Path(by_variable) if by_variable else None)
        path: Path | None = named or DEFAULT_FILE
        file: dict[str, Any] = {}
        try:
            file = _read(named or DEFAULT_FILE)
        except FileNotFoundError:
            if named is not None:
                by = "--config" if config else f"${FILE_VARIABLE}"
                raise ConfigError(f"{named}: there is no such file; {by} names it") from None
            path = None
        except ConfigError as error:
            if named is not None or not forgiving:
                raise
            path, warnings = None, (*warnings, f"passed over: {error}")
        return cls(
            explicit={
                section: {key: value for key, value in keys.items() if value is not None}
                for section, keys in (explicit or {}).items()
            },
            environment=EnvSettingsSource(Settings)(),
            variables=found,
            file=file,
            path=path,
            named=named is not None,
            warnings=warnings,
        )

    def settings(self) -> Settings:
        """Merge and check.

        Raises:
            ConfigError: with one sentence for each value that cannot be used.
        """
        merged = _merge(self.file, self.environment, self.explicit)
        unknown = [name for name in merged if name not in Settings.model_fields]
        problems = [
            f"{name}: no section or key of this name{suggestion(name, Settings.model_fields)}{self._from((name,))}"
            for name in unknown
        ]
        try:
            settings = Settings(**{name: value for name, value in merged.items() if name not in unknown})
        except ValidationError as error:
            problems += [text + self._from(location) for location, text in sentences(error)]
        if problems:
            raise ConfigError(*problems)
        return settings

    def origin(self, location: Location) -> str | None:
        """Where the value at (section, key, …) comes from, in words; None for a default."""
        if _has(self.explicit, location):
            return "from the command line"
        for depth in range(len(location), 0, -1):
            if (variable := self.variables.get(tuple(map(str, location[:depth])))) and _has(self.environment, location):
                return f"from environment {variable}"
        return f"in {self.path}" if _has(self.file, location) else None

    def _from(self, location: Location) -> str:
        """The origin in brackets. Only of a single value: what is wrong with a section may come from several places."""
        whole = not location or location in {(name,) for name in Settings.model_fields}
        origin = None if whole else self.origin(location)
        return f" ({origin})" if origin else ""


def load(
    config: Path | None = None,
    *,
    explicit: Mapping[str, Mapping[str, Any]] | None = None,
    forgiving: bool = False,
    warn: Callable[[str], object] | None = None,
) -> Settings:
    """Read all sources and check them.

    Args:
        config: the TOML file; else $EDGED_CONFIG; else /etc/edged/edged.toml, if it exists.
        explicit: values by section and key that win over all else; None means not given.
        forgiving: pass over the file in /etc with a warning where it cannot be used, and in it what names a password
            or key that this user may not read.
        warn: is called with a sentence for what is odd but no error; without it they go to stderr.

    Raises:
        ConfigError: with a sentence for each thing that is wrong.
    """
    sources = Sources.gather(config, explicit=explicit, forgiving=forgiving)
    warnings = list(sources.warnings)
    try:
        settings = sources.settings()
    except ConfigError as error:
        if not forgiving or sources.named or sources.path is None:
            raise
        settings = replace(sources, file={}, path=None).settings()  # what is wrong now is the consumer's own
        warnings.append(f"{sources.path} passed over: {error}")
    else:
        if forgiving and not sources.named:
            settings, passed_over = _without_daemons_own(sources, settings)
            warnings += passed_over
    warnings += secret_warnings(settings)
    for text in warnings:
        (warn or _to_stderr)(text)
    return settings


def _without_daemons_own(sources: Sources, settings: Settings) -> tuple[Settings, list[str]]:
    """Take out of the file in /etc the credentials that only the daemon may read: a consumer goes without them."""
    warnings: list[str] = []
    mqtt = dict(sources.file.get("mqtt", {}))
    for secret, other in (("password_file", "username"), ("key_file", "cert_file")):
        path: Path | None = getattr(settings.mqtt, secret)
        of_file = sources.origin(("mqtt", secret)) == f"in {sources.path}"
        if of_file and path is not None and not os.access(path, os.R_OK):
            del mqtt[secret]
            mqtt.pop(other, None)
            warnings.append(f"{other} in {sources.path} passed over: its {secret} {str(path)!r} cannot be read")
    return (replace(sources, file={**sources.file, "mqtt": mqtt}).settings() if warnings else settings), warnings


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")


def check_files(settings: Settings) -> None:
    """Prove that the files which the settings name can be read, and that the journal has a place.

    Raises:
        ConfigError: with a sentence for each that cannot.
    """
    problems: list[str] = []
    for check in (settings.mqtt.password, settings.journal.file):
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    for name in ("ca_file", "cert_file", "key_file"):
        path: Path | None = getattr(settings.mqtt, name)
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            problems.append(f"[mqtt] {name}: {str(path)!r} cannot be read: {error.strerror}")
    if problems:
        raise ConfigError(*problems)


def secret_warnings(settings: Settings) -> list[str]:
    """Sentences about a password that others can read, and about one that is there but not used."""
    warnings: list[str] = []
    path = settings.mqtt.password_file
    with suppress(OSError):  # reading it says what is wrong
        if path is not None and path.stat().st_mode & stat.S_IROTH:
            warnings.append(f"[mqtt] password_file: everyone on this machine can read {str(path)!r}; chmod 600 helps")
    if settings.mqtt.username is None and credential() is not None:
        warnings.append(f"[mqtt] username: it is not set, so the credential {CREDENTIAL} is not used")
    return warnings


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: see byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; sections are merged key by key, lists are replaced whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            old = merged.get(name)
            merged[name] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _has(values: Any, location: Location) -> bool:
    try:
        for step in location:
            values = values[step]
    except (LookupError, TypeError):
        return False
    return True
