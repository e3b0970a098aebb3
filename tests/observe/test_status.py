"""The line that `systemctl status` shows."""

from __future__ import annotations

from edged.observe.status import Status


def test_the_line_has_every_model_and_the_broker_where_it_is_away() -> None:
    lines: list[str] = []
    status = Status(["small", "large"], lines.append)
    assert status.line == "connecting to the broker | small: loading | large: loading"
    status.broker()
    status.model("large", "there is no room for it")
    status.model("small", "ready")
    status.broker("no connection; next attempt in 5.1 s")
    assert lines == [
        "small: loading | large: loading",
        "small: loading | large: there is no room for it",
        "small: ready | large: there is no room for it",
        "no connection; next attempt in 5.1 s | small: ready | large: there is no room for it",
    ]


def test_a_node_that_is_about_to_go_says_so_until_it_is_gone() -> None:
    lines: list[str] = []
    status = Status(["small"], lines.append)
    status.broker()
    status.drain()
    assert status.line == "draining | small: loading"
    status.broker("no connection")
    status.model("small", "ready")
    assert lines[1:] == ["draining | no connection | small: loading", "draining | no connection | small: ready"]
