"""Hypothesis strategies for the grammar of the contract."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from edged.wire.topics import Kind, RequestPath, Topics

ids = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
nodes = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True).filter(lambda name: name != "pool")
#: A level of a topic root: any text that one may publish to.
levels = st.text(
    st.characters(
        exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="/#+", min_codepoint=0x20, max_codepoint=0x2FFFF
    ),
    min_size=1,
    max_size=12,
)
roots = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(lambda root: not root.startswith("$"))
all_topics = st.builds(Topics, node=nodes, root=roots)
paths = st.one_of(st.just(RequestPath()), st.builds(RequestPath, id=ids), st.builds(RequestPath, id=ids, client=ids))
kinds_with_path = st.sampled_from([Kind.REQ, Kind.ASK, Kind.REPLY, Kind.RESULT, Kind.CTL, Kind.SESSION])

#: Any JSON value, NaN and the infinities included: what `json.dumps` writes.
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
