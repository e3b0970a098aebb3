"""The project's Markdown, taken apart: sections, fences with what the tests are to do with them, tables and links.

A fence is executed or checked unless a comment in the line before it says otherwise:

    <!-- test: none: REASON -->   not executed
    <!-- test: node -->           starts the node of these tests, in the background
    <!-- test: listen -->         runs in the background until the section's next listener or its end
    <!-- test: heard -->          what the listener shows (see `shape`)
    <!-- test: output -->         what the last command printed

A table may be named for the tests as well: `<!-- fields: request -->` in the line before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECTIVES = frozenset({"none", "node", "listen", "heard", "output"})

_COMMENT = re.compile(r"<!-- test: (\w+)(?:: (.+))? -->")
_TABLE = re.compile(r"<!-- (fields|codes)(?:: (\w+))? -->")
_HEADING = re.compile(r"(#{1,6}) (.+)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block: its language, its text, the line it begins in, and the directive before it."""

    language: str
    text: str
    line: int
    directive: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of any level and the fences up to the next one."""

    page: str
    title: str
    fences: tuple[Fence, ...]

    def __str__(self) -> str:
        return f"{self.page}#{anchor(self.title)}"


@cache
def read(page: str) -> str:
    """The text of a page, by its path in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def pages() -> list[str]:
    """Every Markdown page of the project."""
    return sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))


def prose(page: str) -> str:
    """A page without its fences."""
    return _FENCED.sub("", read(page))


def sections(page: str) -> list[Section]:
    """The sections that have fences."""
    found: list[tuple[str, list[Fence]]] = [("", [])]
    lines = iter(enumerate(read(page).splitlines(), 1))
    before = ""
    for number, line in lines:
        if line.startswith("```"):
            text = "\n".join(_until_end(lines))
            comment = _COMMENT.fullmatch(before)
            directive, reason = (comment[1], comment[2] or "") if comment else ("", "")
            found[-1][1].append(Fence(line[3:].strip(), text, number, directive, reason))
        elif heading := _HEADING.fullmatch(line):
            found.append((heading[2], []))
        before = line
    return [Section(page, title, tuple(fences)) for title, fences in found if fences]


def _until_end(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    for _, line in lines:
        if line == "```":
            return
        yield line
    raise AssertionError("a fence without an end")


def anchor(title: str) -> str:
    """The fragment that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def anchors(page: str) -> set[str]:
    """The fragments that one can link to in a page."""
    return {anchor(m[2]) for line in prose(page).splitlines() if (m := _HEADING.fullmatch(line))}


def links(page: str) -> list[str]:
    """The targets of a page's links and pictures."""
    return _LINK.findall(prose(page))


def tables(page: str) -> dict[str, list[list[str]]]:
    """The rows of the named tables, without their headings, cell by cell. `codes` is named after itself."""
    found: dict[str, list[list[str]]] = {}
    lines = read(page).splitlines()
    for i, line in enumerate(lines):
        if name := _TABLE.fullmatch(line):
            rows = found[name[2] or name[1]] = []
            for row in lines[i + 3 :]:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in row.strip("|").split("|")])
    return found
