"""Where the rooms meet: what one calls a thing, in the words of another. No decision is made here."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog

from edged import __version__
from edged.boot import next_boot
from edged.config import Settings
from edged.config.settings import Model
from edged.core import events
from edged.core.settings import CoreSettings, Defaults, ModelSettings
from edged.engine import protocol
from edged.journal import Journal, JournalFull
from edged.mqtt.settings import Settings as BrokerSettings
from edged.mqtt.settings import Tls
from edged.wire.errors import ErrorCode

#: What a PUBLISH may have besides its payload, and how much too large a payload may be and still get its `too_large`.
#: Bytes.
_PACKET_ROOM = 16 * 1024 * 1024
#: Requests that the broker may have on their way to us, at least.
_LEAST_WINDOW = 16
#: How often a disk that is full is looked at at the start, seconds.
_ROOM_S = 5.0
#: Another one with every boot of the machine (random(4)).
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = structlog.get_logger()


def boot_number(settings: Settings) -> int:
    """Count this start."""
    directory, now = settings.journal.file().parent, time.time()
    try:
        return next_boot(directory, now)
    except OSError as error:
        log.warning("boot number not kept", directory=str(directory), reason=error.strerror)
        return int(now)


def core_settings(settings: Settings, boot: int) -> CoreSettings:
    """What the core has to know."""
    limits, stream = settings.limits, settings.stream
    return CoreSettings(
        topics=settings.topics,
        version=__version__,
        boot=boot,
        reply_topics=settings.reply_filters,
        max_queue=limits.max_queue,
        max_queue_per_client=limits.max_queue_per_client,
        max_payload=limits.max_payload,
        max_tokens=limits.max_tokens,
        timeout_s=limits.timeout_s,
        flush_s=stream.flush_ms / 1000,
        flush_tokens=stream.flush_tokens,
        max_waiting=stream.max_waiting,
        max_pause_s=stream.max_pause_s,
        keep_s=settings.journal.keep_s,
        metrics_s=settings.service.metrics_s,
        models=tuple(
            ModelSettings(alias=model.alias, defaults=Defaults(**model.defaults.model_dump()))
            for model in settings.models
        ),
    )


def journal(settings: Settings, *, post: Callable[[events.Synced], None]) -> Journal:
    """Open the journal; `post` takes its answers, in a thread of the journal's.

    Raises:
        JournalError: it cannot be used.
    """
    section = settings.journal
    file = section.file() if section.enabled else None
    while True:
        try:
            opened = Journal.open(
                file,
                keep_s=section.keep_s,
                max_bytes=section.max_size,
                boot_id=_boot_id(),
                wall=time.time(),
                post=post,
            )
            break
        except JournalFull as error:  # requests wait at the broker meanwhile
            log.warning("waiting for room on the disk", reason=str(error))
            time.sleep(_ROOM_S)
    if opened.set_aside is not None:
        log.error("the journal could not be read and was set aside", file=str(opened.set_aside), saved=opened.salvaged)
    return opened


def _boot_id() -> str:
    """Which boot of the machine this is; where that is hidden every start counts as one, which is the safe side."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError as error:
        log.warning("boot id not readable: after a restart requests run again", reason=error.strerror)
        return str(uuid.uuid4())


def broker_settings(settings: Settings, *, role: str | None = None) -> BrokerSettings:
    """What a connection has to know; the role tells it from the node's main one.

    Raises:
        ConfigError: the password cannot be read.
    """
    mqtt, password = settings.mqtt, settings.mqtt.password()
    return BrokerSettings(
        host=mqtt.host,
        port=mqtt.port,
        client_id=f"edged-{settings.node.name}" + (f"-{role}" if role else ""),
        session_expiry_s=mqtt.session_expiry_s,
        keepalive_s=mqtt.keepalive_s,
        version=mqtt.version,
        username=mqtt.username,
        password=password.get_secret_value() if password else None,
        tls=Tls(ca_file=mqtt.ca_file, cert_file=mqtt.cert_file, key_file=mqtt.key_file) if mqtt.tls else None,
        # What could wait here anyway may be on its way at once; the rest of a flood stays at the broker.
        receive_maximum=max(_LEAST_WINDOW, settings.limits.max_queue),
        maximum_packet=settings.limits.max_payload + _PACKET_ROOM,
    )


def load(model: Model, file: Path, settings: Settings) -> protocol.Load:
    """What the engine of a configured model loads."""
    return protocol.Load(
        path=str(file),
        context=model.context,
        parallel=model.parallel,
        threads=model.threads,
        gpu_layers=model.gpu_layers,
        ubatch=model.ubatch,
        flash_attention=model.flash_attention,
        kv_type=model.kv_type,
        itl_target_ms=settings.engine.itl_target_ms,
        yield_threads=settings.engine.yield_threads,
        hold_ms=settings.stream.flush_ms,
        prefix_cache=model.prefix_cache,
    )


def error_code(text: str) -> ErrorCode | None:
    """The contract's code for what an engine said; `internal` for a word that it has not."""
    try:
        return ErrorCode(text) if text else None
    except ValueError:
        return ErrorCode.INTERNAL


def generate(effect: events.Generate) -> protocol.Generate:
    """The engine's order for a request."""
    sampling = effect.sampling
    return protocol.Generate(
        uid=effect.uid,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        repeat_penalty=sampling.repeat_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        stop=list(sampling.stop),
        messages=None if effect.messages is None else list(effect.messages),
        prompt=None if effect.messages is not None else effect.prompt,
        progress=effect.progress,
        generated=list(effect.generated),
        crc32=effect.crc32,
        owner=effect.owner,
        shared=effect.shared,
        exact=effect.exact,
    )


def order(effect: events.Cancel | events.Hold | events.Release) -> protocol.Order:
    """The engine's order about a request that it has."""
    match effect:
        case events.Cancel():
            return protocol.Cancel(effect.uid)
        case events.Hold():
            return protocol.Hold(effect.uid)
        case events.Release():
            return protocol.Release(effect.uid)


def step(model: str, report: protocol.Step) -> events.EngineStep:
    """The core's event for a step of an engine."""
    return events.EngineStep(
        model=model,
        deltas=tuple(events.Delta(uid, text, tuple(tokens)) for uid, text, tokens in report.deltas),
        prefill=tuple(events.PrefillProgress(*progress) for progress in report.prefill),
        finished=tuple(
            events.Finished(
                uid=one.uid,
                reason=one.reason,
                prompt_tokens=one.prompt_tokens,
                cached_tokens=one.cached_tokens,
                completion_tokens=one.completion_tokens,
                timings=one.timings,
                error=error_code(one.error),
                message=one.message,
            )
            for one in report.finished
        ),
        held_s=report.held_s,
    )
