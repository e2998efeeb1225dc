"""What a judge reads: a text with ``{prompt}``, ``{left}`` and ``{right}``, which are replaced literally.

The texts that come with the package are files in ``prompts/``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment.errors import UserError

_PLACEHOLDERS = ("{prompt}", "{left}", "{right}")
_SHIPPED = Path(__file__).parent / "prompts"


def read_template(path: str | None, *, shipped: str = "pair") -> str:
    """A template, without the line break that ends its file.

    Args:
        path: a file; ``None`` for one that comes with the package.
        shipped: its name.

    Raises:
        UserError: if there is no such file, or a placeholder is missing or repeated.
    """
    file = _SHIPPED / f"{shipped}.txt" if path is None else Path(path)
    try:
        template = file.read_text(encoding="utf-8").removesuffix("\n")
    except OSError as error:
        raise UserError(f"oracle.template: expected a file, got '{path}' ({error.strerror})") from None
    check_template(template)
    return template


def check_template(template: str) -> None:
    """A template holds each placeholder once.

    Raises:
        UserError: if not.
    """
    for name in _PLACEHOLDERS:
        if template.count(name) != 1:
            raise UserError(f"oracle.template: expected {name} once, found it {template.count(name)} times")


def fill_template(template: str, prompts: Sequence[str], left: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    """The text of each question; braces in an answer stay what they are.

    Example:
        >>> list(fill_template("{left}|{prompt}|{right}", ["p {left}"], ["l"], ["r {prompt}"]))
        ['l|p {left}|r {prompt}']
    """
    # In pieces, so that what is filled in is not searched again.
    order = sorted(_PLACEHOLDERS, key=template.index)
    pieces, rest = [], template
    for name in order:
        head, _, rest = rest.partition(name)
        pieces.append(head)
    for values in zip(prompts, left, right, strict=True):
        filled = dict(zip(_PLACEHOLDERS, values, strict=True))
        yield "".join(head + filled[name] for head, name in zip(pieces, order, strict=True)) + rest


PAIR_TEMPLATE = read_template(None)
"""What a judge reads where the recipe gives nothing else."""
