"""Seeds by purpose: what is hashed, and in which order."""

from alignment.seeds import seed_of, seeds_of


def test_other_parts_in_whatever_order_are_another_seed() -> None:
    """Row 3 of run 0 is not row 0 of run 3, and the number 1 is not its text."""
    parts = [(0, "answers", 3), (3, "answers", 0), ("answers", 0, 3), (0, "answers", 30), (0, "answer", 3), (0, 3)]
    parts += [(1,), ("1",), (None,), ("None",), (1, 2), (12,)]
    seeds = [seed_of(*one) for one in parts]
    assert len(set(seeds)) == len(parts) and all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_of_prompts_are_those_of_their_numbers() -> None:
    """So that a part of the prompts is answered as it is among all of them."""
    assert seeds_of(3, 7, "answers") == [seed_of(7, "answers", number) for number in range(3)]
