"""Seeds by purpose: what is drawn depends on what it is for, not on who draws it or on what else is in the batch."""

import hashlib


def seed_of(*parts: int | str | None) -> int:
    """A seed in [0, 2**63) that is a hash of its parts: other parts, an independent seed.

    Example:
        >>> seed_of(0, "answers", 3) == seed_of(0, "answers", 3) != seed_of(0, "answers", 4)
        True
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeds_of(count: int, *parts: int | str | None) -> list[int]:
    """A seed for each of so many prompts, in their order."""
    return [seed_of(*parts, number) for number in range(count)]
