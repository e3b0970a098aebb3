"""The command line. What a command needs is imported when it runs, so that the others stay quick.

Exit codes (sysexits.h): 0 done, 1 failed, 2 wrong usage, 69 unavailable, 75 try again later, 78 wrong configuration;
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from edged import __version__

if TYPE_CHECKING:
    import ssl

    from edged.client.request import Fields
    from edged.client.settings import Options
    from edged.config import Settings

#: What `edged run` needs besides: the modules of the extra `daemon`.
DAEMON_MODULES = ("jinja2", "llama_cpp", "numpy", "structlog", "tomlkit")

# Tracebacks with local variables would print prompts and passwords; rich would take longer to import than the rest.
app = typer.Typer(
    help="A language model on your own machine, reachable over MQTT.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default=False,
        help="TOML file of settings. Otherwise $EDGED_CONFIG, or /etc/edged/edged.toml if it exists.",
    ),
]


def main() -> None:
    """Run the command line; ends by SystemExit with the exit code."""
    app(prog_name="edged")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edged {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(config: ConfigFile = None) -> None:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C."""
    from edged.config import check_files, load  # noqa: PLC0415

    warnings: list[str] = []
    with _explained():
        settings = load(config, warn=warnings.append)
        check_files(settings)
    _require_daemon("the daemon")

    from edged import daemon  # noqa: PLC0415
    from edged.observe import logs  # noqa: PLC0415

    logger = logs.configure(settings.log.level, settings.log.format)
    for warning in warnings:
        logger.warning("configuration", message=warning)
    with _explained():
        raise typer.Exit(daemon.run(settings))


@app.command("config")
def print_sample() -> None:
    """Print a commented configuration file with every setting and its default."""
    from edged.config import sample  # noqa: PLC0415

    typer.echo(sample(), nl=False)


@app.command()
def check_config(config: ConfigFile = None) -> None:
    """Check the configuration; print what is in force and where it comes from, as TOML without secrets.

    Exits with 78 and a sentence for each mistake if there is one. Named files are looked at, the models' as well; the
    journal is not, for it belongs to the daemon's user.
    """
    from edged.config import Sources, check_files, secret_warnings, summary  # noqa: PLC0415
    from edged.engine import files  # noqa: PLC0415

    with _explained():
        sources = Sources.gather(config)
        settings = sources.settings()
        check_files(settings)
        if settings.mqtt.tls:
            _tls(settings)
        for warning in (*sources.warnings, *secret_warnings(settings)):
            typer.echo(f"warning: {warning}", err=True)
        unusable = []
        for model in settings.models:
            try:
                files.describe(files.resolve(model.path))
            except files.ModelFileError as error:
                unusable.append(f"[[models]] {model.alias}: {error}")
        if unusable:
            raise files.ModelFileError("\n".join(unusable))
        typer.echo(f"# ok: {sources.path or 'no file; environment and defaults alone'}")
        typer.echo(f"# password: {settings.mqtt.password_path() or 'none'}")
        typer.echo(f"# journal: {settings.journal.file()}\n")
        typer.echo(summary(settings, sources.origin), nl=False)


@app.command()
def models(config: ConfigFile = None) -> None:
    """List the configured models and what their files say of themselves. Exits with 1 if one cannot be used."""
    from edged.config import load  # noqa: PLC0415
    from edged.engine import files  # noqa: PLC0415

    with _explained():
        settings = load(config)
    failed = False
    for model in settings.models:
        typer.echo(model.alias)
        try:
            file = files.describe(files.resolve(model.path))
        except files.ModelFileError as error:
            typer.echo(f"  {error}")
            failed = True
            continue
        rows = {
            "file": file.path,
            "size": f"{file.size / 1e6:.0f} MB",
            "name": file.name,
            "architecture": file.architecture,
            "parameters": file.size_label,
            "quantisation": file.quantisation,
            "context": f"{model.context} tokens here, trained for {file.context or 'an unknown number'}",
        }
        for name, value in rows.items():
            text = "?" if value is None else str(value)
            # a model file comes from strangers, and what it says of itself must not control the terminal
            typer.echo(f"  {name:<12}  {text if text.isprintable() else ascii(text)}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def tune(
    model: Annotated[
        str | None,
        typer.Argument(help="Alias of a configured model, or the path of a GGUF file. [default: the first model]"),
    ] = None,
    *,
    config: ConfigFile = None,
    write: Annotated[bool, typer.Option("--write", help="Write what is fastest into the configuration file.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A first impression: one short trial of each.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    requantise: Annotated[
        bool,
        typer.Option(
            "--requantise/--no-requantise",
            help="Try the file in other types as well. They are made beside the journal; the fastest is kept.",
        ),
    ] = True,
) -> None:
    """Find the settings with which a model is fastest on this machine: threads, batch, attention, type of the file.

    Nothing is changed without --write. Stop the daemon meanwhile: both would slow each other down.
    """
    from edged.config import Sources  # noqa: PLC0415

    with _explained():
        sources = Sources.gather(config)
        for warning in sources.warnings:
            typer.echo(f"warning: {warning}", err=True)
        _require_daemon("edged tune")
        from edged.tune import child, command  # noqa: PLC0415

        # what runs and what is half written is cleaned up on the way out, whoever ends it
        before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
        try:
            code = command.tune(
                model,
                sources,
                write=write,
                quick=quick,
                as_json=json,
                requantise=requantise,
                say=typer.echo,
                tell=lambda text: typer.echo(text, err=True, nl=False),
                trials=child.Trials(),
            )
        except KeyboardInterrupt:
            typer.echo("\nedged: interrupted; nothing was changed", err=True)
            code = 130
        finally:
            signal.signal(signal.SIGTERM, before)
    raise typer.Exit(code)


@app.command()
def ask(  # noqa: PLR0913 - one for each option
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads it from standard input.")] = None,
    *,
    config: ConfigFile = None,
    node: Annotated[
        str | None,
        typer.Option(help="The node to ask. Otherwise the configured one, or the only one there is.", metavar="NAME"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="The broker. Otherwise the configured one.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port.")] = None,
    username: Annotated[str | None, typer.Option(help="User name for the broker.")] = None,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the user's password. It is never an argument.")
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The CLIENT level of the topics, for the broker's ACL. [default: the user]"),
    ] = None,
    tls: Annotated[bool | None, typer.Option("--tls/--no-tls", help="Encrypt and verify the broker.")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Authorities that vouch for the broker, PEM; implies --tls.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="ALIAS", help="The model to ask.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 = always the likeliest token.")] = None,
    seed: Annotated[int | None, typer.Option(help="For the same answer again.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="For the whole exchange.")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the text as it is generated.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the final message as JSON instead of the text.")] = False,
) -> None:
    """Ask a node and show the answer as it is generated.

    Exits with 0 after an answer, 1 if the request failed, 2 if it is none, 69 if broker or node cannot be reached, 75
    if it may succeed later, 78 if the configuration is wrong, 130 after Ctrl-C, which cancels the request.
    """
    from edged.client.ask import ask as ask_node  # noqa: PLC0415
    from edged.config import load  # noqa: PLC0415

    fields = {
        "model": model,
        "system": system,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "timeout_s": timeout,
    }
    mqtt = {
        "host": host,
        "port": port,
        "username": username,
        # a user of one's own never goes with the daemon's password
        "password_file": "" if username is not None and password_file is None else password_file,
        "tls": True if ca_file is not None and tls is None else tls,
        "ca_file": ca_file,
    }
    with _explained():
        settings = load(config, explicit={"mqtt": mqtt, "node": {"name": node}}, forgiving=True)
        connection = _connection(settings, client)
    code = ask_node(
        prompt,
        connection=connection,
        fields=cast("Fields", {name: value for name, value in fields.items() if value is not None}),
        stream=stream,
        as_json=json,
    )
    raise typer.Exit(code)


def _require_daemon(who: str) -> None:
    """End with a sentence and exit code 69 where the extra `daemon` is not installed."""
    if missing := [name for name in DAEMON_MODULES if find_spec(name) is None]:
        typer.echo(f"edged: {who} needs {', '.join(missing)} as well: pip install 'edged[daemon]'", err=True)
        raise typer.Exit(os.EX_UNAVAILABLE)


def _connection(settings: Settings, client: str | None) -> Options:
    """The keywords of the client from the settings' [mqtt]."""
    from edged.config import ConfigError  # noqa: PLC0415
    from edged.wire.topics import is_id  # noqa: PLC0415

    mqtt = settings.mqtt
    if client is not None and not is_id(client):
        raise ConfigError(f"--client: {client!r} cannot be a topic level: use 1 to 64 of A-Z a-z 0-9 _ . -")
    if client is None and mqtt.username is not None and is_id(mqtt.username):
        client = mqtt.username
    password = mqtt.password()
    return {
        "host": mqtt.host,
        "port": mqtt.port,
        # the default name is this host's, which need not be where the daemon runs
        "node": settings.node.name if "name" in settings.node.model_fields_set else None,
        "client": client,
        "username": mqtt.username,
        "password": password.get_secret_value() if password else None,
        "tls": _tls(settings) if mqtt.tls else False,
        "topic_root": mqtt.topic_root,
        "version": mqtt.version,
        "keepalive": mqtt.keepalive_s,
    }


def _tls(settings: Settings) -> ssl.SSLContext:
    from edged.mqtt.settings import Tls  # noqa: PLC0415

    mqtt = settings.mqtt
    return Tls(ca_file=mqtt.ca_file, cert_file=mqtt.cert_file, key_file=mqtt.key_file).context()


@contextmanager
def _explained() -> Iterator[None]:
    """A wrong configuration, model file or certificate ends in sentences on stderr and exit code 78; no traceback."""
    from edged.config import ConfigError  # noqa: PLC0415
    from edged.engine.files import ModelFileError  # noqa: PLC0415
    from edged.journal import JournalError  # noqa: PLC0415
    from edged.mqtt.settings import TlsError  # noqa: PLC0415
    from edged.observe import journald  # noqa: PLC0415

    try:
        yield
    except (ConfigError, ModelFileError, TlsError, JournalError) as error:
        for problem in str(error).splitlines():
            typer.echo(f"{journald.prefix('error', sys.stderr)}edged: {problem}", err=True)
        raise typer.Exit(os.EX_CONFIG) from None
