"""Where the rooms meet: what one calls a thing, in the words of another. No decision is made here."""

from __future__ import annotations

import time

import structlog

from edged import __version__
from edged.boot import next_boot
from edged.config import Settings
from edged.core import events
from edged.core.settings import CoreSettings, Defaults, ModelSettings
from edged.engine import protocol
from edged.mqtt.settings import Settings as BrokerSettings
from edged.mqtt.settings import Tls
from edged.wire.errors import ErrorCode

#: What a PUBLISH may have besides its payload, and how much too large a payload may be and still get its `too_large`.
#: Bytes.
_PACKET_ROOM = 16 * 1024 * 1024

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
        keep_s=settings.journal.keep_s,
        metrics_s=settings.service.metrics_s,
        models=tuple(
            ModelSettings(alias=model.alias, defaults=Defaults(**model.defaults.model_dump()))
            for model in settings.models
        ),
    )


def broker_settings(settings: Settings) -> BrokerSettings:
    """What the connection has to know.

    Raises:
        ConfigError: the password cannot be read.
    """
    mqtt, password = settings.mqtt, settings.mqtt.password()
    return BrokerSettings(
        host=mqtt.host,
        port=mqtt.port,
        client_id=f"edged-{settings.node.name}",
        keepalive_s=mqtt.keepalive_s,
        version=mqtt.version,
        username=mqtt.username,
        password=password.get_secret_value() if password else None,
        tls=Tls(ca_file=mqtt.ca_file, cert_file=mqtt.cert_file, key_file=mqtt.key_file) if mqtt.tls else None,
        maximum_packet=settings.limits.max_payload + _PACKET_ROOM,
    )


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
    )


def step(model: str, report: protocol.Step) -> events.EngineStep:
    """The core's event for a step of an engine."""
    return events.EngineStep(
        model=model,
        deltas=tuple(events.Delta(*delta) for delta in report.deltas),
        prefill=tuple(events.PrefillProgress(*progress) for progress in report.prefill),
        finished=tuple(
            events.Finished(
                uid=one.uid,
                reason=one.reason,
                prompt_tokens=one.prompt_tokens,
                cached_tokens=one.cached_tokens,
                completion_tokens=one.completion_tokens,
                timings=one.timings,
                error=ErrorCode(one.error) if one.error else None,
                message=one.message,
            )
            for one in report.finished
        ),
    )
