"""What goes wrong ends in an error that says so, and never in a partial answer: the threaded client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from edged.client import (
    Client,
    CorruptStream,
    ErrorCode,
    Gap,
    IncompleteStream,
    InvalidRequest,
    NodeUnavailable,
    NotFinished,
    RequestFailed,
    RequestRefused,
    Restarted,
    SlowConsumer,
    Stream,
    StreamRestarted,
    Timeout,
)
from edged.wire.messages import Chunk, Error
from tests.client.puppet import PATIENCE_S, Options, PuppetNode


def read(stream: Stream, pieces: list[str]) -> None:
    """Note the pieces, those before an error too."""
    for piece in stream:
        pieces.append(piece.text)  # noqa: PERF401 - `extend` would lose them


def test_a_wrong_field_fails_here_with_the_daemons_words(client: Client, puppet: PuppetNode) -> None:
    with pytest.raises(InvalidRequest, match="unknown field `temprature`") as caught:
        client.stream("Hello?", temprature=0.5)  # type: ignore[call-arg]  # what is being tested
    assert caught.value.field == "temprature"
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert not caught.value.retryable
    with pytest.raises(InvalidRequest, match="`temperature`: input should be less than or equal to 5"):
        client.ask("Hello?", temperature=7)
    with pytest.raises(InvalidRequest, match="`max_tokens`: input should be a valid integer"):
        client.ask("Hello?", max_tokens="5")  # type: ignore[arg-type]  # what is being tested
    with pytest.raises(InvalidRequest, match=r"messages\.0\.role"):
        client.ask([{"role": "robot", "content": "beep"}])
    with pytest.raises(InvalidRequest, match="`session` is not supported by this version"):
        client.ask("Hello?", session="s")  # type: ignore[call-arg]  # what is being tested
    with pytest.raises(InvalidRequest, match="the client listens on its own reply topic"):
        client.ask("Hello?", reply_to="reply/me")  # type: ignore[call-arg]  # what is being tested
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        client.ask("Hello?", metadata={"a": object()})  # type: ignore[dict-item]  # what is being tested
    assert puppet.asked_nothing()


def test_a_refusal_carries_the_nodes_error(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    puppet.asked().refuse(ErrorCode.OVERLOADED, "256 requests wait; at most 256 may", retry_after_ms=1500)
    with pytest.raises(RequestRefused, match="256 requests wait") as caught:
        list(stream)
    assert (caught.value.code, caught.value.status) == (ErrorCode.OVERLOADED, 429)
    assert caught.value.retryable
    assert caught.value.retry_after_ms == 1500
    assert caught.value.final is stream.final


def test_a_failure_keeps_what_there_was_and_is_no_result(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("half an ans")
    asked.finish("error", error=Error.of(ErrorCode.CRASHED, "the engine went down twice"))
    with pytest.raises(RequestFailed, match="went down twice") as caught:
        list(stream)
    assert not isinstance(caught.value, RequestRefused)
    assert caught.value.text_so_far == "half an ans"
    assert caught.value.final is not None
    with pytest.raises(NotFinished):
        _ = stream.result
    with pytest.raises(RequestFailed):
        list(stream)  # an error stays one


def test_an_unhealed_gap_is_an_incomplete_stream_and_never_a_partial(options: Options, puppet: PuppetNode) -> None:
    with Client(**options, gap_timeout=0.05) as client:
        stream = client.stream("Hello?")
        asked = puppet.asked()
        asked.accept()
        asked.say("one ")
        asked.chunk("two ")  # never sent
        asked.say("three")
        asked.finish(include_text=False)
        pieces: list[str] = []
        with pytest.raises(IncompleteStream, match="seq 2-2 of generation 1") as caught:
            read(stream, pieces)
    assert pieces == ["one "]
    assert caught.value.text_so_far == "one "
    assert caught.value.missing is not None
    assert caught.value.missing.ranges == ((2, 2),)
    asked_again = puppet.replayed.get(timeout=PATIENCE_S)
    assert (asked_again.from_seq, asked_again.gen) == (2, 1)
    with pytest.raises(NotFinished):
        _ = stream.result


def test_the_finals_text_heals_a_gap(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one ")
    asked.chunk("two ")  # never sent
    asked.say("three")
    asked.finish()
    assert "".join(piece.text for piece in stream) == "one two three"
    assert stream.text == "one two three"
    assert stream.result.healed


def test_doubled_and_reordered_messages_are_put_in_order(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    one, two, three = asked.chunk("one "), asked.chunk("two "), asked.chunk("three")
    asked.send(two, one, one, three, two)
    asked.finish(include_text=False)
    events = list(stream.events())
    assert [event.text for event in events if isinstance(event, Chunk)] == ["one ", "two ", "three"]
    assert any(isinstance(event, Gap) for event in events)
    assert stream.result.duplicates == 2


def test_a_wrong_checksum_is_a_corrupt_stream(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one")
    final = asked.final(include_text=False)
    asked.send(final.model_copy(update={"crc32": final.crc32 ^ 1}))
    with pytest.raises(CorruptStream, match="CRC"):
        list(stream)


def test_a_restart_voids_what_was_handed_out_and_says_so(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one")
    asked.restart()
    asked.accept()
    asked.say("uno")
    asked.finish()
    pieces: list[str] = []
    with pytest.raises(StreamRestarted, match="generation 2"):
        read(stream, pieces)
    assert pieces == ["one"]


def test_next_may_go_on_after_a_restart(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one")
    for _ in range(2):  # the second voids nothing that was handed out
        asked.restart()
        asked.accept()
    asked.say("uno")
    asked.finish()
    assert next(stream).text == "one"
    with pytest.raises(StreamRestarted):
        next(stream)
    assert next(stream).text == "uno"
    assert list(stream) == []
    assert stream.text == "uno"


def test_events_follow_a_restart(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one")
    asked.restart()
    asked.answer("uno")
    events = list(stream.events())
    assert Restarted(2) in events
    assert stream.text == "uno"
    assert stream.result.gen == 2


def test_messages_of_others_on_the_reply_topic_change_nothing(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    topic = puppet.topics.reply(asked.path)
    asked.accept()
    puppet.publish(topic, b"\xff not JSON")
    puppet.publish(topic, asked.chunk("x").model_copy(update={"id": "another", "seq": 1}).payload())
    asked._seq -= 1
    asked._text = ""
    asked.say("one")
    asked.finish(include_text=False)
    assert [piece.text for piece in stream] == ["one"]


def test_two_requests_with_one_id_do_not_mix(client: Client, puppet: PuppetNode) -> None:
    first = client.stream("Hello?", id="same")
    second = client.stream("Hello again?", id="same")
    with pytest.raises(InvalidRequest, match="ids must differ") as caught:
        list(second)
    assert caught.value.code is ErrorCode.ID_CONFLICT
    second.close()
    puppet.asked().answer("Hi")
    assert [piece.text for piece in first] == ["Hi"]
    assert puppet.asked_nothing()
    assert puppet.cancelled.empty()


def test_a_slow_reader_bounds_the_memory_and_is_told(options: Options, puppet: PuppetNode) -> None:
    with Client(**options, buffer_bytes=20_000) as client:
        stream = client.stream("Hello?")
        asked = puppet.asked()
        asked.accept()
        asked.say(*("x" * 100 for _ in range(200)))
        assert puppet.cancelled.get(timeout=PATIENCE_S) == stream.id  # though nobody reads
        pieces: list[str] = []
        with pytest.raises(SlowConsumer, match="buffer_bytes") as caught:
            read(stream, pieces)
    assert caught.value.buffer_bytes == 20_000
    assert 0 < len(pieces) < 200
    assert "".join(pieces) == stream.text_so_far


def test_a_reader_that_keeps_up_may_read_more_than_the_buffer(options: Options, puppet: PuppetNode) -> None:
    with Client(**options, buffer_bytes=5_000) as client:
        stream = client.stream("Hello?")
        asked = puppet.asked()
        asked.accept()
        for _ in range(100):
            asked.say("x" * 100)
            assert next(stream).text == "x" * 100
        asked.finish()
        assert list(stream) == []
    assert stream.text == "x" * 10_000


# --- a node that is not there ---------------------------------------------------------------------------------------


def test_a_node_that_stays_lost_ends_the_stream(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    asked.say("one")
    assert next(stream).text == "one"
    puppet.die()
    with pytest.raises(NodeUnavailable, match="'lost'") as caught:
        next(stream)
    assert (caught.value.node, caught.value.state) == ("kitchen", "lost")


def test_a_node_that_stays_offline_ends_an_ask(client: Client, puppet: PuppetNode) -> None:
    puppet.on_request = lambda _asked: puppet.show("offline")
    with pytest.raises(NodeUnavailable, match="'offline'"):
        client.ask("Hello?")


def test_the_will_of_an_earlier_run_ends_nothing(client: Client, puppet: PuppetNode) -> None:
    stream = client.stream("Hello?")
    asked = puppet.asked()
    asked.accept()
    puppet.show("lost", boot=puppet.boot - 1)
    asked.say("one")
    asked.finish()
    assert [piece.text for piece in stream] == ["one"]


def test_a_node_known_to_be_gone_is_not_asked(client: Client, puppet: PuppetNode) -> None:
    puppet.show("offline")
    client.connect()
    with pytest.raises(NodeUnavailable, match="'offline'"):
        client.stream("Hello?")
    assert puppet.asked_nothing()


def test_a_node_that_does_not_accept_in_time_is_unavailable(options: Options, puppet: PuppetNode) -> None:
    with Client(**options, accept_timeout=0.1) as client:
        stream = client.stream("Hello?")
        with pytest.raises(NodeUnavailable, match=r"no `accepted` within 0\.1 s"):
            list(stream)
        assert puppet.cancelled.get(timeout=PATIENCE_S) == stream.id  # in case it is only slow


def test_a_silent_node_with_a_card_may_take_its_time_over_an_ask(options: Options, puppet: PuppetNode) -> None:
    with Client(**options, accept_timeout=0.5) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.ask, "Hello?")
        asked = puppet.asked()
        stream = client.stream("Is it late?")  # fails when the time is up, so it is a clock
        with pytest.raises(NodeUnavailable):
            list(stream)
        asked.answer("Hi")
        assert answer.result(PATIENCE_S).text == "Hi"


def test_nobody_at_the_request_topic_is_told_at_once(options: Options) -> None:
    with Client(**{**options, "node": "nowhere"}) as client:
        with pytest.raises(NodeUnavailable, match=r"nobody is subscribed to .*/nowhere/req/"):
            list(client.stream("Hello?"))
        with pytest.raises(NodeUnavailable, match=r"nobody is subscribed to .*/nowhere/ask/"):
            client.ask("Hello?")


def test_an_exchange_that_takes_too_long_is_cancelled(options: Options, puppet: PuppetNode) -> None:
    with Client(**options, timeout=0.2) as client:
        stream = client.stream("Hello?")
        puppet.asked().accept()
        with pytest.raises(Timeout, match=r"within 0\.2 s"):
            list(stream)
        assert puppet.cancelled.get(timeout=PATIENCE_S) == stream.id
