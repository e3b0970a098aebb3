"""Stream an answer to the terminal: python examples/python_stream.py "Why is the sky blue?"."""
# ruff: noqa: INP001 - an example stands alone, in no package

import sys

from edged import Client


def show(client: Client, prompt: str) -> None:
    """Print the answer as it is generated, and how fast that was."""
    stream = client.stream(prompt, max_tokens=200)
    for piece in stream:
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    final = stream.result.final
    if final.metrics is not None:
        sys.stderr.write(f"\n[{final.finish_reason}] {final.metrics.tokens_per_second:.1f} tokens/s\n")


if __name__ == "__main__":
    # The only node of the local broker; host=... and node=... name others.
    with Client() as local:
        show(local, " ".join(sys.argv[1:]) or "Why is the sky blue? Answer in two sentences.")
