"""Links between the pages lead somewhere."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.docs import pages

LINKS = [(page, target) for page in pages.pages() for target in pages.links(page)]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_link_leads_somewhere(page: str, target: str) -> None:
    if "://" in target:
        assert target.startswith("https://")
        return
    path, _, fragment = target.partition("#")
    file = (pages.ROOT / page).parent / path if path else pages.ROOT / page
    assert file.exists(), f"{page} links to {path}, which does not exist"
    assert file.resolve().is_relative_to(pages.ROOT)
    if fragment:
        name = str(file.resolve().relative_to(pages.ROOT))
        assert fragment in pages.anchors(name), f"{name} has no heading for #{fragment}"


@pytest.mark.parametrize("page", ["README.md", "docs/protocol.md", "docs/architecture.md", "CHANGELOG.md"])
def test_pages_are_linked_from_the_readme_or_are_it(page: str) -> None:
    assert page == "README.md" or page in pages.links("README.md")


def test_the_picture_says_in_words_what_it_shows() -> None:
    """Readers who see no picture, and viewers without styles, are readers too."""
    picture = ET.parse(pages.ROOT / "docs" / "flow.svg").getroot()
    namespace = "{http://www.w3.org/2000/svg}"
    assert picture.get("viewBox")
    assert all(len(picture.findtext(f"{namespace}{name}", "")) > 20 for name in ("title", "desc"))
