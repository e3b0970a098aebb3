"""For consumers: `Client` for threads, `AsyncClient` for asyncio, and their errors. Works without llama.cpp."""

from edged.client.aio import AsyncClient, AsyncStream
from edged.client.call import Text
from edged.client.errors import (
    CorruptStream,
    EdgedError,
    IncompleteStream,
    InvalidRequest,
    NodeUnavailable,
    NodeUndecided,
    NotConnected,
    NotFinished,
    PublishRefused,
    RequestFailed,
    RequestRefused,
    SlowConsumer,
    StreamRestarted,
    Timeout,
)
from edged.client.request import Fields, Prompt
from edged.client.settings import Options, Settings
from edged.client.sync import Client, Stream
from edged.wire.errors import ErrorCode
from edged.wire.messages import Accepted, Chunk, Error, Final, Progress
from edged.wire.request import Message
from edged.wire.stream import Completed, Gap, Missing, Remainder, Restarted, Result, StreamEvent

__all__ = [
    "Accepted",
    "AsyncClient",
    "AsyncStream",
    "Chunk",
    "Client",
    "Completed",
    "CorruptStream",
    "EdgedError",
    "Error",
    "ErrorCode",
    "Fields",
    "Final",
    "Gap",
    "IncompleteStream",
    "InvalidRequest",
    "Message",
    "Missing",
    "NodeUnavailable",
    "NodeUndecided",
    "NotConnected",
    "NotFinished",
    "Options",
    "Progress",
    "Prompt",
    "PublishRefused",
    "Remainder",
    "RequestFailed",
    "RequestRefused",
    "Restarted",
    "Result",
    "Settings",
    "SlowConsumer",
    "Stream",
    "StreamEvent",
    "StreamRestarted",
    "Text",
    "Timeout",
]
