"""What is raised when the configuration cannot be used."""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration is wrong. `str()` gives one sentence a line, each naming the key and where it came from.

    Attributes:
        problems: the sentences, one for each thing that is wrong.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
