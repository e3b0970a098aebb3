"""`make demo`: a broker, the daemon, one question by the ordinary MQTT tools, the answer as it comes, and an end."""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.signals import held
from deploy.stack import HOST, POLL_S, Child, StackError, broker, daemon, find, shown, signals_end_the_block
from edged.wire import Chunk, Completed, Kind, Reassembler, Remainder, RequestPath, Result, Topics, WireError

#: What is asked; the README quotes it.
PROMPT = "Why is the sky blue? Answer in two sentences."
NODE = "demo"
REQUEST = RequestPath("hello")
#: How long loading the model may take, and the whole answer, seconds. Generous: the board may be small, or busy.
ONLINE_S, ANSWER_S = 300.0, 300.0

#: Control characters other than tab and newline.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Subscriber:
    """A running mosquitto_sub, read message by message."""

    def __init__(self, process: subprocess.Popen[bytes], watched: tuple[Child, ...]) -> None:
        self._process = process
        self._watched = watched
        self._unread = b""

    def message(self, *, deadline: float) -> tuple[str, bytes]:
        """The next message's topic and payload.

        Raises:
            TimeoutError: `deadline` (of time.monotonic) has passed.
            StackError: mosquitto_sub, or a child that is watched, has ended.
        """
        out = self._process.stdout
        if out is None:
            raise ValueError("mosquitto_sub has to be started with a pipe as its stdout")
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                for child in self._watched:
                    child.check()
                if time.monotonic() > deadline:
                    raise TimeoutError
                if selector.select(POLL_S):
                    data = os.read(out.fileno(), 65536)
                    if not data:
                        raise StackError(f"mosquitto_sub ended with code {self._process.wait()}")
                    self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        topic, _, payload = line.partition(b" ")
        return topic.decode(), payload


@contextmanager
def subscriber(port: int, topics: Topics, watched: tuple[Child, ...]) -> Iterator[Subscriber]:
    """Run mosquitto_sub for the node's status card and its replies, in one subscription."""
    command = [find("mosquitto_sub"), "-h", HOST, "-p", str(port), "-q", "1", "-v"]
    command += ["-t", topics.status, "-t", topics.filter(Kind.REPLY)]
    with ExitStack() as stack:
        with held():
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
            stack.callback(process.terminate)
        yield Subscriber(process, watched)


def wait_until_online(messages: Subscriber, topics: Topics, watched: Child) -> None:
    """Wait for the retained status card to say that the node takes requests.

    The subscription takes in the replies as well, so from the card on no reply can be missed.
    """
    deadline = time.monotonic() + ONLINE_S
    state = "unknown"
    while state not in ("online", "busy"):
        try:
            topic, payload = messages.message(deadline=deadline)
        except TimeoutError:
            raise watched.error(f"was not online after {ONLINE_S:.0f} s (state: {state})") from None
        if topic == topics.status:
            state = json.loads(payload)["state"]


def show_answer(messages: Subscriber, topics: Topics, watched: Child) -> Result:
    """Print the answer as it streams in; the result is complete and checked against its checksum."""
    reassembler = Reassembler()
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            topic, payload = messages.message(deadline=deadline)
        except TimeoutError:
            raise watched.error(f"had not answered after {ANSWER_S:.0f} s") from None
        if topic != topics.reply(REQUEST):
            continue
        for event in reassembler.feed(payload):
            if isinstance(event, Chunk | Remainder):
                print(printable(event.text), end="", flush=True)
            elif isinstance(event, Completed):
                print()
                return event.result


def printable(text: str) -> str:
    """The text without what could steer a terminal."""
    return _CONTROL.sub("�", text)


def table(result: Result) -> str:
    """The final's figures, for people."""
    rows = [("finish reason", str(result.final.finish_reason))]
    if usage := result.final.usage:
        rows.append(("tokens", f"{usage.prompt_tokens} in the prompt, {usage.completion_tokens} in the answer"))
    if metrics := result.final.metrics:
        if metrics.time_to_first_token_ms is not None:
            rows.append(("first token after", f"{metrics.time_to_first_token_ms:.0f} ms"))
        rows.append(("speed", f"{metrics.tokens_per_second:.1f} tokens/s"))
        rows.append(("all in all", f"{metrics.e2e_time_ms / 1000:.2f} s"))
    rows.append(("checked", f"{result.final.chars} characters, CRC-32 {result.final.crc32:08x}"))
    return "\n".join(f"  {name:<20} {value}" for name, value in rows)


def demo(directory: Path) -> None:
    """The whole of it, in `directory`.

    Raises:
        StackError: anything failed.
    """
    topics = Topics(NODE)
    began = time.monotonic()
    with broker(directory) as (mosquitto, port):
        say(f"the broker runs (mosquitto on {HOST}, port {port}); the daemon is starting")
        with (
            daemon(directory, node=NODE, port=port, log=directory / "edged.log") as edged,
            subscriber(port, topics, (mosquitto, edged)) as messages,
        ):
            wait_until_online(messages, topics, edged)
            say(f"node {NODE!r} is online after {time.monotonic() - began:.1f} s; now, with the ordinary MQTT tools:\n")
            where = ["-h", HOST, "-p", str(port)]
            publish = [find("mosquitto_pub"), *where, "-q", "1", "-t", topics.of(Kind.REQ, REQUEST), "-m", PROMPT]
            print("$", shown(["mosquitto_sub", *where, "-t", topics.filter(Kind.REPLY)]))
            print("$", shown(publish), end="\n\n", flush=True)
            if subprocess.run(publish, stdin=subprocess.DEVNULL, check=False, timeout=30).returncode:
                raise mosquitto.error("did not take the request")
            try:
                result = show_answer(messages, topics, edged)
            except WireError as error:
                raise edged.error(f"sent a reply that cannot be put together: {error}") from error
            if result.error:
                raise edged.error(f"refused the request: {result.error.code}: {result.error.message}")
            print(f"\n{table(result)}\n", flush=True)
    say("daemon and broker are stopped. `make run` starts them to stay.")


def say(text: str) -> None:
    """One line of our own."""
    print(f"edged: {text}", flush=True)


def main() -> int:
    """Run the demo; 0 when the answer came whole."""
    signals_end_the_block()
    try:
        with tempfile.TemporaryDirectory(prefix="edged-demo-") as name:
            demo(Path(name))
    except StackError as error:
        print(f"\nedged: the demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nedged: interrupted; everything that was started is stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
