"""What a judge reads: a text whose placeholders are replaced literally.

The texts that come with the package are files in ``prompts/``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment.errors import UserError

PAIR = ("{prompt}", "{left}", "{right}")
"""Placeholders of a question about two answers."""
SINGLE = ("{prompt}", "{answer}")
"""Placeholders of a question about one."""
_SHIPPED = Path(__file__).parent / "prompts"


def read_template(path: str | None, *, shipped: str = "pair", placeholders: Sequence[str] = PAIR) -> str:
    """A template, without the line break that ends its file.

    Args:
        path: a file; ``None`` for one that comes with the package.
        shipped: its name.
        placeholders: that it holds.

    Raises:
        UserError: if there is no such file, or a placeholder is missing or repeated.
    """
    file = _SHIPPED / f"{shipped}.txt" if path is None else Path(path)
    try:
        template = file.read_text(encoding="utf-8").removesuffix("\n")
    except OSError as error:
        raise UserError(f"oracle.template: expected a file, got '{path}' ({error.strerror})") from None
    check_template(template, placeholders)
    return template


def check_template(template: str, placeholders: Sequence[str] = PAIR) -> None:
    """A template holds each placeholder once.

    Raises:
        UserError: if not.
    """
    for name in placeholders:
        if template.count(name) != 1:
            raise UserError(f"oracle.template: expected {name} once, found it {template.count(name)} times")


def fill_template(template: str, *texts: Sequence[str], placeholders: Sequence[str] = PAIR) -> Iterator[str]:
    """The text of each question; braces in an answer stay what they are.

    Args:
        template: with the placeholders.
        texts: of each question, for each placeholder.
        placeholders: of the template.

    Example:
        >>> list(fill_template("{left}|{prompt}|{right}", ["p {left}"], ["l"], ["r {prompt}"]))
        ['l|p {left}|r {prompt}']
    """
    # In pieces, so that what is filled in is not searched again.
    order = sorted(placeholders, key=template.index)
    pieces, rest = [], template
    for name in order:
        head, _, rest = rest.partition(name)
        pieces.append(head)
    for values in zip(*texts, strict=True):
        filled = dict(zip(placeholders, values, strict=True))
        yield "".join(head + filled[name] for head, name in zip(pieces, order, strict=True)) + rest


PAIR_TEMPLATE = read_template(None)
"""What a judge reads where the recipe gives nothing else."""
