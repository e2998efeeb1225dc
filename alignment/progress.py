"""How long work tells what it did, and how far it is."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console

Item = TypeVar("Item")

Announce = Callable[[str], None]
"""Is told in a line what was done."""

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""


def tracked(items: Sequence[Item], what: str, progress: Progress) -> Iterator[Item]:
    """The items in order; progress hears of each before its turn, and of the end."""
    for chunk in chunked(items, 1, what, progress):
        yield chunk[0]


def chunked(items: Sequence[Item], size: int, what: str, progress: Progress) -> Iterator[Sequence[Item]]:
    """The items in order, ``size`` at a time; progress hears of each chunk before its turn, and of the end.

    Example:
        >>> list(chunked("abcde", 2, "letters", print))
        letters 0 5
        letters 2 5
        letters 4 5
        letters 5 5
        ['ab', 'cd', 'e']
    """
    for start in range(0, len(items), size):
        progress(what, start, len(items))
        yield items[start : start + size]
    progress(what, len(items), len(items))


def run_console(*, quiet: bool = False) -> Console:
    """Where runs speak: standard error, each line as it is, whatever brackets and numbers are in it."""
    return Console(stderr=True, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)
