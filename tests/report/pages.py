"""What tests of pages share: a strict reader of HTML, and texts that try to break out."""

from __future__ import annotations

import html.parser

VOID = {"meta", "link", "img", "br", "hr", "input", "source", "wbr"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp; ]]> {{ 7*7 }} \x00\x1b[31m\u202e\ud800 ::error::x"


class Page(html.parser.HTMLParser):
    """Elements of a page as (tag, attributes), with the text; raises when a tag is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]} at {self.getpos()}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        """The attributes of all elements of that tag with those values (`class_` for class)."""
        sought = {name.rstrip("_"): value for name, value in wanted.items()}
        return [found for name, found in self.elements if name == tag and all(found.get(k) == v for k, v in sought.items())]

    @property
    def text(self) -> str:
        """All the text, white space made one blank."""
        return " ".join(" ".join(self.texts).split())
