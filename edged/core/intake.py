"""From a PUBLISH to a request that can be run, or to the reason why not. Knows topics and bounds, not who runs."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass

from edged.core.events import MessageArrived, Sampling
from edged.core.records import Key
from edged.core.settings import CoreSettings, ModelSettings
from edged.wire.errors import ErrorCode, RequestError, TopicError
from edged.wire.request import Control, Message, Request, parse_control, parse_request
from edged.wire.topics import Kind, RequestPath, check_publishable, check_reply_topic


@dataclass(frozen=True, slots=True)
class Order:
    """A request that is in order.

    Attributes:
        digest: of the payload: the same id with another digest is a conflict.
        topic: where the reply goes.
        only_final: one message answers it.
        shared: so many of the first messages are the operator's own words.
        unheard: nobody can know the topic: the id was made here, and no other topic was asked for.
    """

    key: Key
    request: Request
    digest: bytes
    topic: str
    model: str
    sampling: Sampling
    only_final: bool
    shared: int
    unheard: bool


@dataclass
class Refusal(Exception):  # noqa: N818 - the noun says it
    """A request that is not in order.

    Attributes:
        id: the id to answer under.
        topic: where the answer goes; None where there is no topic to publish to.
        public: also told on `events`, because it may have no reader there.
        retry_after_ms: a good time to wait, where there is one.
    """

    code: ErrorCode
    message: str
    id: str
    topic: str | None
    public: bool = False
    retry_after_ms: int | None = None


class Intake:
    """Checks requests against the contract and the operator's bounds.

    Args:
        settings: the node's.
    """

    def __init__(self, settings: CoreSettings) -> None:
        self._settings = settings
        self._models = {model.alias: model for model in settings.models}

    def order(self, event: MessageArrived, *, made_id: str, seed: int) -> Order:
        """Read a message on a `req` or `ask` topic.

        Args:
            event: the message.
            made_id: the id to use where the request names none.
            seed: the seed to use where the request names none.

        Raises:
            Refusal: what is wrong, and where to say it.
        """
        kind, path = self._address(event, made_id)
        reply = RequestPath(path.id or made_id, path.client)
        try:
            request = parse_request(event.payload, max_bytes=self._settings.max_payload)
        except RequestError as error:
            raise self._refused(error, event, path, made_id) from None
        if path.id is None:
            reply = RequestPath(request.id or made_id)
        elif request.id not in (None, path.id):
            raise Refusal(
                ErrorCode.BAD_REQUEST,
                f"`id` is {request.id!r} in the payload but {path.id!r} in the topic: they must agree",
                path.id,
                self._settings.topics.reply(reply),
            )
        made = path.id is None and request.id is None
        topic = self._reply_topic(request.reply_to, event, reply, public=made)
        unheard = made and topic == self._settings.topics.reply(reply)
        key = Key(reply.client, reply.id or made_id)
        try:
            model = self._model(request)
            sampling = self._sampling(request, model, seed)
        except RequestError as error:
            raise Refusal(error.code, error.message, key.id, topic, public=unheard) from None
        request, shared = _with_default_system(request, model)
        return Order(
            key=key,
            request=request,
            digest=digest(event.payload),
            topic=topic,
            model=model.alias,
            sampling=sampling,
            only_final=kind is Kind.ASK or not request.stream,
            shared=shared,
            unheard=unheard,
        )

    def stand_in(self, key: Key, topic: str, request: Request, *, seed: int) -> Order:
        """An order for a request that can only be ended, with the parameters of the first model."""
        model = self._settings.models[0]
        sampling = self._sampling(request, model, seed)
        return Order(key, request, b"", topic, model.alias, sampling, only_final=False, shared=0, unheard=False)

    def control(self, event: MessageArrived) -> tuple[Key, Control]:
        """Read a message on a `ctl` topic: which request it is about, and what it wants.

        Raises:
            Refusal: what is wrong, and where to say it.
        """
        path = self._path(event)
        if path is None or path.id is None:
            raise self.misdirected(event, "a control topic names a request: ctl/ID or ctl/CLIENT/ID")
        try:
            control = parse_control(event.payload, max_bytes=self._settings.max_payload)
        except RequestError as error:
            raise Refusal(error.code, error.message, path.id, self._settings.topics.reply(path)) from None
        return Key(path.client, path.id), control

    def unknown(self, key: Key, message: str) -> Refusal:
        """The refusal of a control message about a request that is not here."""
        return Refusal(ErrorCode.UNKNOWN_REQUEST, message, key.id, self._settings.topics.reply(key.path))

    def misdirected(self, event: MessageArrived, message: str) -> Refusal:
        """The refusal of a message that is no request, for its reply topic if it has one."""
        path = self._path(event)
        if path is None or path.id is None:
            return Refusal(ErrorCode.BAD_REQUEST, message, "-", None, public=True)
        return Refusal(ErrorCode.BAD_REQUEST, message, path.id, self._settings.topics.reply(path))

    def _path(self, event: MessageArrived) -> RequestPath | None:
        try:
            return self._settings.topics.parse(event.topic).path
        except TopicError:
            return None

    def _address(self, event: MessageArrived, made_id: str) -> tuple[Kind, RequestPath]:
        topics = self._settings.topics
        kind, levels = topics.split(event.topic)
        try:
            return kind, RequestPath.of(levels)
        except TopicError as error:
            # The rule people remember still holds: they listen where `req` reads `reply`.
            mirrored = "/".join((topics.base, Kind.REPLY, *levels))
            try:
                check_publishable(mirrored)
            except TopicError:
                mirrored = topics.reply(RequestPath(made_id))
            raise Refusal(ErrorCode.BAD_REQUEST, f"the topic's PATH: {error}", made_id, mirrored, public=True) from None

    def _refused(self, error: RequestError, event: MessageArrived, path: RequestPath, made_id: str) -> Refusal:
        reply = path if path.id else RequestPath(error.id or made_id)
        topic = self._settings.topics.reply(reply)
        with contextlib.suppress(Refusal):  # the first thing that is wrong is the one to tell
            topic = self._reply_topic(error.reply_to, event, reply, public=False)
        lost = not error.decoded or (path.id is None and error.id is None)
        return Refusal(error.code, error.message, reply.id or made_id, topic, public=lost)

    def _reply_topic(self, wanted: str | None, event: MessageArrived, reply: RequestPath, *, public: bool) -> str:
        """The payload's `reply_to`, or else the Response Topic, or else the default."""
        settings = self._settings
        default = settings.topics.reply(reply)
        name = "reply_to" if wanted is not None else "Response Topic"
        wanted = wanted if wanted is not None else event.response_topic
        if wanted is None or wanted == default:
            return default
        try:
            check_reply_topic(wanted, allowed=settings.reply_topics, topics=settings.topics)
        except TopicError as error:
            raise Refusal(ErrorCode.BAD_REQUEST, f"`{name}`: {error}", reply.id or "", default, public=public) from None
        return wanted

    def _model(self, request: Request) -> ModelSettings:
        if request.model is None:
            return self._settings.models[0]
        model = self._models.get(request.model)
        if model is None:
            raise RequestError(
                ErrorCode.UNKNOWN_MODEL,
                f"`model`: this node has no model {request.model!r}; it has {', '.join(self._models)}",
                field="model",
            )
        return model

    def _sampling(self, request: Request, model: ModelSettings, seed: int) -> Sampling:
        limit, defaults = self._settings.max_tokens, model.defaults
        if request.max_tokens is not None and request.max_tokens > limit:
            raise RequestError(
                ErrorCode.BAD_REQUEST,
                f"`max_tokens`: {request.max_tokens} is over this node's limit of {limit} (setting limits.max_tokens)",
                field="max_tokens",
            )
        stops = request.stops
        return Sampling(
            max_tokens=min(limit, defaults.max_tokens) if request.max_tokens is None else request.max_tokens,
            temperature=_or(request.temperature, defaults.temperature),
            top_p=_or(request.top_p, defaults.top_p),
            top_k=defaults.top_k if request.top_k is None else request.top_k,
            min_p=_or(request.min_p, defaults.min_p),
            seed=seed if request.seed is None else request.seed,
            stop=defaults.stop if stops is None else stops,
            repeat_penalty=_or(request.repeat_penalty, defaults.repeat_penalty),
            presence_penalty=_or(request.presence_penalty, defaults.presence_penalty),
            frequency_penalty=_or(request.frequency_penalty, defaults.frequency_penalty),
        )


def digest(payload: bytes) -> bytes:
    """What tells a repeated request from another one under the same id."""
    return hashlib.sha256(payload).digest()


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _with_default_system(request: Request, model: ModelSettings) -> tuple[Request, int]:
    """The model's system prompt goes before a conversation that has none; and how many messages that makes."""
    system = model.defaults.system
    if system is None or request.raw or request.system is not None:
        return request, 0
    if request.messages is None:
        return request.model_copy(update={"system": system}), 1
    if any(message.role == "system" for message in request.messages):
        return request, 0
    messages = [Message(role="system", content=system), *request.messages]
    return request.model_copy(update={"messages": messages}), 1
