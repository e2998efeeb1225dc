"""The naming convention as a check: what agrees passes, what disagrees is named with what was expected."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.shapes import check_shapes


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_agreeing_tensors_give_the_sizes(b: int, g: int, k: int) -> None:
    """Sizes by letter; a letter may repeat, be 0, or come late; ``None`` is no tensor."""
    sizes = check_shapes(
        logps_BG=torch.zeros(b, g), nothing_BGT=None, prefs_KBGG=torch.zeros(k, b, g, g), scalar_=torch.zeros(())
    )
    assert sizes == {"B": b, "G": g, "K": k}
    assert check_shapes(nothing_BG=None) == {}


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_an_axis_has_one_size(b: int, g: int, other: int) -> None:
    """Two tensors that share a letter must agree on it, in whichever order they come."""
    first, second = torch.zeros(b, g), torch.zeros(other, g)
    if other == b:
        assert check_shapes(first_BG=first, second_BG=second) == {"B": b, "G": g}
        return
    for tensors in ({"first_BG": first, "second_BG": second}, {"second_BG": second, "first_BG": first}):
        with pytest.raises(ValueError, match=f"^{list(tensors)[1]}: expected shape"):
            check_shapes(**tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"ref_BG": (2, 4)}, r"ref_BG: expected shape \[B=2, G=3\], got \[2, 4\]"),
        ({"prefs_BGG": (2, 3)}, r"prefs_BGG: expected shape \[B=2, G=3, G=3\], got \[2, 3\]"),
        ({"prefs_KBGG": (1, 2, 3, 2)}, r"prefs_KBGG: expected shape \[K, B=2, G=3, G=3\], got \[1, 2, 3, 2\]"),
        ({"loss_B": ()}, r"loss_B: expected shape \[B=2\], got \[\]"),
        ({"tokens_BGT": (2, 3)}, r"tokens_BGT: expected shape \[B=2, G=3, T\], got \[2, 3\]"),
    ],
)
def test_the_message_says_what_was_expected(tensors: dict[str, tuple[int, ...]], message: str) -> None:
    """Axes that another tensor fixed come with their size, new ones as a letter."""
    with pytest.raises(ValueError, match=message):
        check_shapes(logps_BG=torch.zeros(2, 3), **{name: torch.zeros(shape) for name, shape in tensors.items()})


def test_one_tensor_must_agree_with_itself() -> None:
    """A square that is not one."""
    with pytest.raises(ValueError, match=r"prefs_XAA: expected shape \[X, A, A\], got \[2, 3, 4\]"):
        check_shapes(prefs_XAA=torch.zeros(2, 3, 4))
