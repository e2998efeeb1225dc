"""A page as a reader without eyes meets it: elements, their attributes, and their text."""

from html.parser import HTMLParser

_EMPTY = {"meta", "link", "path", "line", "rect", "circle", "polygon"}


class Reading(HTMLParser):
    """Reads a page.

    Attributes:
        elements: (tag, attributes) in order.
        text: everything that is read, without styles.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self._parts: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._parts).split())

    def all(self, *tags: str) -> list[dict[str, str]]:
        """Attributes of all elements of these tags."""
        return [attributes for tag, attributes in self.elements if tag in tags]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _EMPTY or self.get_starttag_text() == f"<{tag}>":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            assert tag in _EMPTY, f"</{tag}> closes {self._open[-3:]}"

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self._parts.append(data)
