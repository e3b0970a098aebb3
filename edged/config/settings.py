"""Every setting of the daemon: its name, meaning, unit, bounds and default stand here and nowhere else.

Building `Settings(...)` reads nothing but its arguments; `edged.config.load` reads the file and the environment too.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from edged.config.errors import ConfigError
from edged.config.kinds import Alias, Host, NodeName, OptionalFile, OptionalText, Text, TopicFilter, TopicRoot, Version
from edged.config.section import Section, key, sampling
from edged.wire.request import MAX_STOP, StopString
from edged.wire.topics import DEFAULT_ROOT, RESERVED_NODE, Topics

#: The registered ports of MQTT without and with TLS.
PORT, TLS_PORT = 1883, 8883
#: The credential that systemd's LoadCredential= brings, by its name there.
CREDENTIAL = "mqtt-password"
#: MQTT carries a password's length in two bytes.
MAX_PASSWORD_BYTES = 65535
#: Leaves room for the longest node name, client and id in the 512 bytes that a reply topic may have.
MAX_ROOT = 256


def default_node_name() -> str:
    """The host's name, in the alphabet of node names."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:64] or "edged"
    return f"{name}-node" if name == RESERVED_NODE else name


def credential() -> Path | None:
    """The password that systemd's LoadCredential= brings; None where there is none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory) / CREDENTIAL if directory else None
    return path if path is not None and path.is_file() else None


class Node(Section):
    """This daemon among others."""

    name: NodeName = key(
        default_node_name,
        "Name of this node in its topics: 1 to 64 of A-Z a-z 0-9 _ -, and not pool.",
        shown="the host name, other characters replaced by -",
    )


class Mqtt(Section):
    """The broker, and what may be said where."""

    host: Host = key("localhost", "Host name or address of the broker.")
    port: int = key(PORT, f"TCP port of the broker; {TLS_PORT} where tls is on and no port is set.", ge=1, le=65535)
    version: Version = key(
        5, "Version of MQTT to speak. 3.1.1 has no expiry, no Response Topic and no reasons for refusals."
    )
    username: OptionalText = key(None, "User name for the broker; empty for none.", max_length=1024)
    password_file: OptionalFile = key(
        None,
        "File that holds the password, one line, readable by the daemon alone. Empty: "
        f"$CREDENTIALS_DIRECTORY/{CREDENTIAL} where systemd provides it, else no password. Needs username.",
    )
    topic_root: TopicRoot = key(DEFAULT_ROOT, "First levels of all topics.", max_length=MAX_ROOT)
    reply_topics: Annotated[tuple[TopicFilter, ...], Field(max_length=100)] = key(
        ("reply/#", "{root}/{node}/reply/#"),
        "Topic filters: a reply may be sent to what matches one of them. {root} and {node} are filled in.",
    )
    keepalive_s: int = key(
        30, "How often the connection is proved to be alive when it is idle.", unit="s", ge=5, le=3600
    )
    session_expiry_s: int = key(
        86_400,
        "How long the broker keeps requests for this node while it is away; 0 = not at all. MQTT 3.1.1 knows no time: "
        "the broker keeps them as long as it likes.",
        unit="s",
        ge=0,
        le=2**32 - 2,
    )
    tls: bool = key(False, "Encrypt the connection and verify the broker's certificate.")
    ca_file: OptionalFile = key(
        None, "File of the authorities that vouch for the broker, PEM; empty for the system's own."
    )
    cert_file: OptionalFile = key(None, "File of this node's certificate, PEM, where the broker asks for one.")
    key_file: OptionalFile = key(None, "File of the certificate's private key, PEM, without a passphrase.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if files and not self.tls:
            raise ValueError(f"{files[0]} is set but tls is off: set tls = true, or remove {files[0]}")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together: set both or neither")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs username beside it: brokers look a password up by the user's name")
        if self.tls and "port" not in self.model_fields_set:
            object.__setattr__(self, "port", TLS_PORT)  # frozen from here on; this is still its construction
        return self

    def password_path(self) -> Path | None:
        """Where the password is to be read: `password_file`, or else systemd's credential where there is one."""
        if self.username is None or self.password_file is not None:
            return self.password_file
        return credential()

    def password(self) -> SecretStr | None:
        """Read the password, without the newline at its end; None where there is none to read.

        Raises:
            ConfigError: the file is missing, unreadable, empty, too long, or not UTF-8.
        """
        path = self.password_path()
        if path is None:
            return None
        where = f"[mqtt] password_file: {str(path)!r}"
        try:
            with path.open("rb") as file:
                text = file.read(MAX_PASSWORD_BYTES + 3).decode()
        except OSError as error:
            raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{where} is not UTF-8") from None
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            raise ConfigError(f"{where} is empty; write the password into it, or remove the setting")
        if len(text.encode()) > MAX_PASSWORD_BYTES:
            raise ConfigError(f"{where} is longer than the {MAX_PASSWORD_BYTES} bytes that MQTT has room for")
        return SecretStr(text)


class Defaults(Section):
    """What a request that does not say otherwise is generated with."""

    max_tokens: int = sampling("max_tokens", 512)
    temperature: float = sampling("temperature", 0.8)
    top_p: float = sampling("top_p", 0.95)
    top_k: int = sampling("top_k", 40)
    min_p: float = sampling("min_p", 0.05)
    repeat_penalty: float = sampling("repeat_penalty", 1.0)
    presence_penalty: float = sampling("presence_penalty", 0.0)
    frequency_penalty: float = sampling("frequency_penalty", 0.0)
    stop: Annotated[tuple[StopString, ...], Field(max_length=MAX_STOP)] = sampling("stop", ())
    system: OptionalText = key(None, "System prompt of requests that bring none; empty for the model's own.")


class Model(Section):
    """One model. Repeat the section for more; the first one serves requests that name none."""

    alias: Alias = key("", "What requests call it: 1 to 64 of A-Z a-z 0-9 _ . -", shown="the file's name without .gguf")
    path: Text = key("starter", "A GGUF file; or starter, the small model that pip installs.", min_length=1)
    context: int = key(
        4096,
        "Size of the KV cache, shared by all that run at the same time; also the most that one request may use.",
        unit="tokens",
        ge=64,
        le=2**20,
    )
    parallel: int = key(8, "How many requests are generated at the same time.", ge=1, le=128)
    threads: int = key(
        0, "CPU threads, at most; 0 = one for each physical core. More than that is slower.", ge=0, le=512
    )
    gpu_layers: int = key(
        0, "How many of the model's layers go to the GPU, where llama.cpp was built for one.", ge=0, le=9999
    )
    ubatch: int = key(
        64,
        "How many tokens of prompts llama.cpp computes at once. More needs more memory; what is fastest, edged tune "
        "finds out.",
        unit="tokens",
        ge=8,
        le=512,
    )
    flash_attention: Literal["auto", "on", "off"] = key(
        "auto", "The kernel that computes the attention: faster for many long answers at once, slower for some models."
    )
    kv_type: Literal["f16", "q8_0"] = key(
        "f16",
        "Type of the numbers in the KV cache. q8_0 needs about half of the memory and flash attention.",
    )
    prefix_cache: bool = key(
        True,
        "Keep what was computed of a client's requests in the KV cache while there is room, so that its next request "
        "which begins alike starts sooner. The system prompt below is kept for all clients.",
    )
    defaults: Defaults = Field(default_factory=Defaults, description=Defaults.__doc__)

    @model_validator(mode="after")
    def _check_kv_type(self) -> Self:
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise ValueError(f"kv_type {self.kv_type!r} needs flash attention: set flash_attention to auto or on")
        return self

    @model_validator(mode="after")
    def _name_it(self) -> Self:
        if not self.alias:
            stem = self.path.rpartition("/")[2].removesuffix(".gguf")
            alias = re.sub(r"[^A-Za-z0-9_.-]", "-", stem)[:64]
            if not alias:
                raise ValueError(f"path {self.path!r} ends in no file name: give the path of a GGUF file")
            object.__setattr__(self, "alias", alias)  # as for the port: still its construction
        return self


class Engine(Section):
    """How the models' processes share the machine's time."""

    itl_target_ms: float = key(
        50,
        "While answers are running, the prompts of new ones are worked off in pieces so small that the gap between "
        "two tokens stays under this. Larger: new requests begin sooner, running ones are slower meanwhile.",
        unit="ms",
        ge=5,
        le=10_000,
    )
    yield_threads: bool = key(
        True,
        "While other programs want the cores, compute with fewer threads: they wait for each other, and one that has "
        "no core holds up the others. A request with a seed that runs alone gets all threads even so, because their "
        "number changes the last digits.",
    )


class Stream(Section):
    """How tokens become messages."""

    flush_ms: float = key(
        40, "Text is rolled up for at most so long; the first leaves at once.", unit="ms", ge=0, le=5000
    )
    flush_tokens: int = key(32, "Text is sent when so many tokens have been rolled up.", unit="tokens", ge=1, le=1024)
    max_waiting: int = key(
        8,
        "Messages of one stream that the broker has not confirmed, before chunks grow instead.",
        unit="messages",
        ge=1,
        le=1000,
    )
    max_pause_s: float = key(300, "A paused answer goes on by itself after so long.", unit="s", ge=1, le=86_400)


class Limits(Section):
    """What is refused, so that nothing grows without bound."""

    max_queue: int = key(
        256, "Requests that may wait; more are refused as overloaded.", unit="requests", ge=1, le=10_000
    )
    max_queue_per_client: int = key(128, "Requests of one client that may wait.", unit="requests", ge=1, le=10_000)
    max_payload: int = key(2**18, "Size of a request.", unit="bytes", ge=16, le=2**24)
    max_tokens: int = key(4096, "The most tokens that a request may ask for.", unit="tokens", ge=1, le=2**20)
    timeout_s: float = key(
        600, "The most time that a request may take, from its arrival to its end.", unit="s", ge=0.1, le=7 * 86_400
    )


class Journal(Section):
    """What survives a restart: the requests that were accepted, and what was said to them."""

    enabled: bool = key(
        True,
        "Keep the journal in a file. false: in memory, so that a restart of the daemon loses what it had accepted.",
    )
    path: OptionalFile = key(
        None,
        "File of the journal; the number of the boot is kept beside it. Empty: journal.db in $STATE_DIRECTORY under "
        "systemd, else in edged/ under $XDG_STATE_HOME or ~/.local/state.",
    )
    keep_s: int = key(
        600,
        "How long an answered request is remembered, so that it can be asked for again; also the Message Expiry of "
        "replies.",
        unit="s",
        ge=1,
        le=30 * 86_400,
    )
    max_size: int = key(
        64 * 2**20,
        "Size of the journal. When it is full, the oldest answered requests are forgotten before their time; where "
        "that is not enough, nothing is accepted until there is room.",
        unit="bytes",
        ge=2**20,
        le=2**40,
    )

    def file(self) -> Path:
        """Where the journal is: `path`, or the place that the platform has for it. Nothing is created.

        Raises:
            ConfigError: there is no home directory to put it under.
        """
        if self.path is not None:
            return self.path
        if state := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
            return Path(state) / "journal.db"
        home = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not home.is_absolute():  # the XDG specification: relative paths are to be ignored
            try:
                home = Path.home() / ".local" / "state"
            except RuntimeError:
                raise ConfigError("[journal] path: this user has no home directory; set the path of a file") from None
        return home / "edged" / "journal.db"


class Service(Section):
    """The life of the daemon."""

    grace_s: float = key(20, "On SIGTERM, answers that are running may finish for so long.", unit="s", ge=0, le=3600)
    metrics_s: float = key(60, "Interval of the metrics topic; 0 = off.", unit="s", ge=0, le=86_400)


class Log(Section):
    """What the daemon writes to stderr. Never prompts, answers or passwords."""

    level: Literal["debug", "info", "warning", "error"] = key("info", "The least that is written.")
    format: Literal["auto", "console", "json"] = key(
        "auto", "For people, or one JSON object a line; auto = console on a terminal, else json."
    )


class Settings(BaseSettings):
    """All settings, checked. Immutable; holds no secret."""

    model_config = SettingsConfigDict(
        env_prefix="EDGED_", env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    node: Node = Field(default_factory=Node)
    mqtt: Mqtt = Field(default_factory=Mqtt)
    models: Annotated[tuple[Model, ...], Field(min_length=1, max_length=16)] = Field(default_factory=lambda: (Model(),))
    engine: Engine = Field(default_factory=Engine)
    stream: Stream = Field(default_factory=Stream)
    limits: Limits = Field(default_factory=Limits)
    journal: Journal = Field(default_factory=Journal)
    service: Service = Field(default_factory=Service)
    log: Log = Field(default_factory=Log)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings' signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments alone: `load` merges the other sources itself, so that errors can say where a value came from."""
        return (init_settings,)

    @model_validator(mode="after")
    def _unique_aliases(self) -> Self:
        aliases = [model.alias for model in self.models]
        for i, alias in enumerate(aliases):
            if alias in aliases[:i]:
                raise ValueError(f"[[models]] alias: two models are called {alias!r}; give one of them another alias")
        return self

    @property
    def topics(self) -> Topics:
        """The node's topics."""
        return Topics(node=self.node.name, root=self.mqtt.topic_root)

    @property
    def reply_filters(self) -> tuple[str, ...]:
        """`mqtt.reply_topics` with the placeholders filled in."""
        return tuple(
            text.replace("{root}", self.mqtt.topic_root).replace("{node}", self.node.name)
            for text in self.mqtt.reply_topics
        )
