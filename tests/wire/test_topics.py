from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from edged.wire import RequestPath, TopicError, Topics, check_publishable, check_reply_topic, is_id, matches
from edged.wire.topics import DEFAULT_ROOT, INPUT_KINDS, MAX_REPLY_TOPIC_BYTES, Address, Kind
from tests.wire.strategies import all_topics, ids, kinds_with_path, paths

KITCHEN = Topics("pi-kitchen")
DEFAULT_ALLOWED = ("reply/#", "edged/v1/pi-kitchen/reply/#")


# --- building and reading back --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "kind", "path"),
    [
        ("edged/v1/pi-kitchen/req", Kind.REQ, RequestPath()),
        ("edged/v1/pi-kitchen/req/k1", Kind.REQ, RequestPath("k1")),
        ("edged/v1/pi-kitchen/ask/alice/k1", Kind.ASK, RequestPath("k1", client="alice")),
        ("edged/v1/pi-kitchen/reply/alice/k1", Kind.REPLY, RequestPath("k1", client="alice")),
        ("edged/v1/pi-kitchen/result/k1", Kind.RESULT, RequestPath("k1")),
        ("edged/v1/pi-kitchen/ctl/alice/k1", Kind.CTL, RequestPath("k1", client="alice")),
        ("edged/v1/pi-kitchen/session/s1", Kind.SESSION, RequestPath("s1")),
        ("edged/v1/pi-kitchen/status", Kind.STATUS, RequestPath()),
        ("edged/v1/pi-kitchen/metrics", Kind.METRICS, RequestPath()),
        ("edged/v1/pi-kitchen/events", Kind.EVENTS, RequestPath()),
    ],
)
def test_every_topic_of_the_contract_is_built_and_read(topic: str, kind: Kind, path: RequestPath) -> None:
    assert KITCHEN.parse(topic) == Address(kind, path)
    assert KITCHEN.of(kind, path) == topic


def test_the_reply_topic_is_the_request_topic_with_reply_in_place_of_req() -> None:
    for kind in (Kind.REQ, Kind.ASK):
        topic = "edged/v1/pi-kitchen/req/alice/k1".replace("req", kind)
        assert KITCHEN.reply(KITCHEN.parse(topic).path) == "edged/v1/pi-kitchen/reply/alice/k1"


def test_presence_topics() -> None:
    assert KITCHEN.status == "edged/v1/pi-kitchen/status"
    assert KITCHEN.metrics == "edged/v1/pi-kitchen/metrics"
    assert KITCHEN.events == "edged/v1/pi-kitchen/events"


@given(topics=all_topics, kind=kinds_with_path, path=paths)
def test_what_is_built_reads_back_the_same(topics: Topics, kind: Kind, path: RequestPath) -> None:
    assert topics.parse(topics.of(kind, path)) == Address(kind, path)


@given(
    rest=st.lists(st.one_of(ids, st.sampled_from([*Kind, "", "+", "#", "a b", "x" * 65])), max_size=5).map("/".join),
    prefix=st.sampled_from(["edged/v1/pi-kitchen", "edged/v1/pi-kitchen/", "edged/v1/pi", "edged/v1/", ""]),
)
def test_what_reads_is_built_the_same_and_all_else_is_a_topic_error(prefix: str, rest: str) -> None:
    topic = prefix + rest
    try:
        address = KITCHEN.parse(topic)
    except TopicError:
        return
    assert KITCHEN.of(address.kind, address.path) == topic


@given(topics=all_topics, kind=kinds_with_path, path=paths)
def test_one_subscription_takes_in_every_path_of_a_kind_and_no_other_kind(
    topics: Topics, kind: Kind, path: RequestPath
) -> None:
    for other in (Kind.REQ, Kind.ASK, Kind.REPLY, Kind.CTL):
        assert matches(topics.filter(other), topics.of(kind, path)) == (other == kind)


def test_presence_subscriptions_have_no_wildcard() -> None:
    assert KITCHEN.filter(Kind.STATUS) == KITCHEN.status


@pytest.mark.parametrize(
    "topic",
    [
        "edged/v1/other/req/k1",
        "edged/v1/pi-kitchen2/req/k1",
        "edged/v2/pi-kitchen/req/k1",
        "edged/v1/pi-kitchen",
        "edged/v1/pi-kitchen/",
        "edged/v1/pi-kitchen/requests/k1",
        "edged/v1/pi-kitchen/req/",
        "edged/v1/pi-kitchen/req//k1",
        "edged/v1/pi-kitchen/req/a/b/c",
        "edged/v1/pi-kitchen/req/a b",
        "edged/v1/pi-kitchen/req/k1\n",
        "edged/v1/pi-kitchen/req/" + "x" * 65,
        "edged/v1/pi-kitchen/status/x",
        "edged/v1/pi-kitchen/status/",
    ],
)
def test_topics_outside_the_grammar_are_refused(topic: str) -> None:
    with pytest.raises(TopicError):
        KITCHEN.parse(topic)


def test_a_request_path_refuses_a_client_without_an_id() -> None:
    with pytest.raises(TopicError, match=r"'alice'.* needs an id"):
        RequestPath(client="alice")


@pytest.mark.parametrize("name", ["", "pool", "a/b", "a b", "a.b", "a+", "#", "ü", "x" * 65, "a\n"])
def test_node_names_outside_the_grammar_are_refused(name: str) -> None:
    with pytest.raises(TopicError, match="node name"):
        Topics(name)


@pytest.mark.parametrize("root", ["", "/a", "a/", "a//b", "a/+", "#", "$SYS", "a\x00b", "\uffff"])
def test_roots_outside_the_grammar_are_refused(root: str) -> None:
    with pytest.raises(TopicError):
        Topics("n", root)


def test_ids_are_1_to_64_of_their_alphabet() -> None:
    assert all(map(is_id, ["a", "A-z_0.9", "x" * 64, ".", "-"]))
    assert not any(map(is_id, ["", "x" * 65, "a/b", "a b", "é", "a\n", "\uff11"]))  # the last one is a full-width 1


def test_input_topics_are_known_even_where_their_path_is_malformed() -> None:
    for kind in Kind:
        assert KITCHEN.is_input(f"{KITCHEN.base}/{kind}") == (kind in INPUT_KINDS)
        assert KITCHEN.is_input(f"{KITCHEN.base}/{kind}/a b/c/d") == (kind in INPUT_KINDS)
    assert not KITCHEN.is_input("edged/v1/other/req")


# --- reply topics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["reply/app/1", "reply", f"{DEFAULT_ROOT}/pi-kitchen/reply/a/b/c", "reply/ü/日本/🙂"])
def test_reply_topics_of_the_default_list_are_allowed(topic: str) -> None:
    check_reply_topic(topic, allowed=DEFAULT_ALLOWED, topics=KITCHEN)


@pytest.mark.parametrize(
    ("topic", "why"),
    [
        ("", "empty"),
        ("reply/#", "wildcard"),
        ("reply/+/x", "wildcard"),
        ("$SYS/x", "starts with \\$"),
        ("$share/g/reply/x", "starts with \\$"),
        ("reply/\x00", "control character"),
        ("reply/\n", "control character"),
        ("reply/\x7f", "control character"),
        ("reply/\x9f", "control character"),
        ("reply/\uffff", "non-character"),
        ("reply/\ufffe", "non-character"),
        ("reply/\ufdd0", "non-character"),
        ("reply/\ufdef", "non-character"),
        ("reply/\U0001ffff", "non-character"),
        ("reply/\U0010fffe", "non-character"),
        ("reply/\ud800", "surrogate"),
        ("reply/" + "é" * 254, "514 bytes"),
        ("edged/v1/pi-kitchen/req", "input topics"),
        ("edged/v1/pi-kitchen/req/k1", "input topics"),
        ("edged/v1/pi-kitchen/ask/k1", "input topics"),
        ("edged/v1/pi-kitchen/ctl/k1", "input topics"),
        ("edged/v1/pi-kitchen/session/a/b/c/d", "input topics"),
        ("elsewhere", "mqtt.reply_topics"),
        ("replyx/a", "mqtt.reply_topics"),
        ("edged/v1/pi-kitchen/status", "mqtt.reply_topics"),
    ],
)
def test_reply_topics_are_refused_with_the_reason(topic: str, why: str) -> None:
    with pytest.raises(TopicError, match=why):
        check_reply_topic(topic, allowed=DEFAULT_ALLOWED, topics=KITCHEN)


def test_input_topics_are_refused_even_where_the_operator_allows_everything() -> None:
    check_reply_topic("anything/at/all", allowed=["#"], topics=KITCHEN)
    with pytest.raises(TopicError, match="input topics"):
        check_reply_topic("edged/v1/pi-kitchen/req/k1", allowed=["#"], topics=KITCHEN)


def test_the_longest_reply_topic_has_512_bytes() -> None:
    check_publishable("é" * (MAX_REPLY_TOPIC_BYTES // 2))
    with pytest.raises(TopicError, match=f"513 bytes long; at most {MAX_REPLY_TOPIC_BYTES}"):
        check_publishable("é" * (MAX_REPLY_TOPIC_BYTES // 2) + "x")


@given(topic=st.text(st.characters(exclude_categories=[]), max_size=30))
def test_any_text_is_publishable_or_a_topic_error(topic: str) -> None:
    try:
        check_publishable(topic)
    except TopicError:
        return
    assert topic
    assert not set(topic) & set("#+\x00\n\uffff")


# --- topic filters --------------------------------------------------------------------------------------------------

_level = st.sampled_from(["a", "b", "ab", "", "$SYS", "$"])
_topic = st.lists(_level, min_size=1, max_size=5).map("/".join).filter(bool)
_filter = st.builds(
    lambda levels, tail: "/".join(levels + tail),
    st.lists(_level | st.just("+"), min_size=1, max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool) | st.just("#")


@given(topic_filter=_filter, topic=_topic)
def test_filters_match_as_paho_says(topic_filter: str, topic: str) -> None:
    assert matches(topic_filter, topic) == topic_matches_sub(topic_filter, topic)
