"""Cards: what an option may be, how a mistake is answered, and how a method is found."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import UserError
from alignment.methods import Options, build_method, load_card, method_names, option
from alignment.methods._card import example_options
from alignment.methods.dpo import DPO
from alignment.types import Method, Needs
from alignment.values import nearest_or_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy(Options):
    """A card with every kind of option."""

    strength: float = option(paper="the paper chose 0.3", above=0, at_most=2)
    share: float = option(default=0.5, paper="0.5", at_least=0, below=1)
    clip: float | None = option(default=None, paper="none", above=0)
    count: int = option(default=1, paper="1", at_least=1)
    is_hard: bool = option(default=False, paper="False")
    mode: Literal["fast", "slow"] = option(default="fast", paper="fast")
    weights: tuple[float, ...] = option(default=(), paper="none", example=(0.5, 0.25))
    block: Mapping[str, Any] | None = option(default=None, paper="none")

    needs: ClassVar[Needs] = Needs(feedback="pairs")


@pytest.fixture(autouse=True)
def toy_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of somebody else, reachable by a dotted path."""
    module = ModuleType("mylab")
    module.__dict__["Toy"] = Toy
    monkeypatch.setitem(sys.modules, "mylab", module)


def toy(**options: Any) -> Any:
    return build_method({"name": "mylab:Toy", "strength": 0.3, **options})


def test_dotted_paths_reach_other_peoples_cards() -> None:
    """``module:Class``, with the same checks as for our own."""
    assert load_card("mylab:Toy") is Toy
    assert toy().strength == 0.3
    with pytest.raises(UserError, match=r"missing option 'strength'; the paper chose 0\.3"):
        build_method({"name": "mylab:Toy"})


@pytest.mark.parametrize("name", ["mylab:Missing", "no_such_module:Toy", ":Toy", ".mylab:Toy"])
def test_a_path_that_leads_nowhere_is_named(name: str) -> None:
    """Whether the module or the class is missing."""
    with pytest.raises(UserError, match=rf"method '{name}': expected 'module:Class' that can be imported"):
        load_card(name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("os:path", "of type module"),
        ("math:pi", "of type float"),
        ("pathlib:Path", "a class that is no dataclass"),
        ("alignment.data:Turn", "a dataclass without needs"),
    ],
)
def test_a_path_that_leads_to_no_card_is_named(name: str, found: str) -> None:
    with pytest.raises(UserError) as caught:
        build_method({"name": name})
    assert str(caught.value) == f"method.name: expected 'module:Class' of a method's card, got '{name}', {found}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inp", "unknown method 'inp'; did you mean 'inpo'"),
        ("egpo_", "did you mean 'egpo'"),
        ("_card", "unknown method '_card'"),
        ("zzzzzz", "unknown method 'zzzzzz'; `alignment methods` lists all"),
    ],
)
def test_an_unknown_method_has_a_nearest_one(name: str, message: str) -> None:
    """Private modules are no methods."""
    with pytest.raises(UserError, match=message):
        load_card(name)


@pytest.mark.parametrize("spec", [{}, {"name": None}, {"name": 3}, {"beta": 0.1}])
def test_a_block_needs_a_name(spec: dict[str, Any]) -> None:
    """A missing or non-text name is a mistake of the block, not of a method."""
    with pytest.raises(UserError, match=r"method\.name: expected the name of a method, got"):
        build_method(spec)


def test_every_module_is_a_method() -> None:
    """The file name is the registry: sorted names, each with a card."""
    names = method_names()
    assert list(names) == sorted(names) and not any(name.startswith("_") for name in names)
    assert all(issubclass(load_card(name), Options) for name in names)


def test_unknown_options_have_a_nearest_match() -> None:
    """Or, where nothing is near, the list of what the card has."""
    with pytest.raises(UserError, match=r"method 'mylab:Toy': unknown option 'strenght'; did you mean 'strength'\?"):
        build_method({"name": "mylab:Toy", "strength": 1.0, "strenght": 1.0})
    with pytest.raises(UserError, match=r"unknown option 'xyz' \(known: block, clip, count, is_hard, mode, share"):
        toy(xyz=1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strength": "1/3"}, "strength: expected float, got '1/3'"),
        ({"strength": "0.3"}, "strength: expected float, got '0.3'"),
        ({"strength": None}, "strength: expected float, got None"),
        ({"strength": True}, "strength: expected float, got True"),
        ({"strength": [0.3]}, r"strength: expected float, got \[0.3\]"),
        ({"count": 1.5}, "count: expected int, got 1.5"),
        ({"count": "2"}, "count: expected int, got '2'"),
        ({"count": True}, "count: expected int, got True"),
        ({"is_hard": 1}, "is_hard: expected bool, got 1"),
        ({"is_hard": "yes"}, "is_hard: expected bool, got 'yes'"),
        ({"mode": "medium"}, r"mode: expected Literal\['fast', 'slow'\], got 'medium'"),
        ({"weights": [0.5, "1/3"]}, r"weights: expected tuple\[float, \.\.\.\], got \[0.5, '1/3'\]"),
        ({"weights": 0.5}, r"weights: expected tuple\[float, \.\.\.\], got 0.5"),
        ({"clip": "none"}, "clip: expected float | None, got 'none'"),
    ],
)
def test_types_are_strict(options: dict[str, Any], expected: str) -> None:
    """``1/3`` in YAML is text, and text is never a number; nor is a truth value."""
    with pytest.raises(UserError, match=expected):
        toy(**options)


def test_what_yaml_writes_differently_is_converted() -> None:
    """A list becomes a tuple and an integer a float: the same value in the words of YAML."""
    card = toy(strength=1, weights=[1, 0.5], clip=None, block={"name": "spo"})
    assert isinstance(card.strength, float) and card.strength == 1.0
    assert card.weights == (1.0, 0.5) and card.clip is None and card.block == {"name": "spo"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strength": 0.0}, "expected strength > 0, got 0.0"),
        ({"strength": 2.5}, "expected strength <= 2, got 2.5"),
        ({"share": -0.1}, "expected share >= 0, got -0.1"),
        ({"share": 1.0}, "expected share < 1, got 1.0"),
        ({"clip": 0.0}, "expected clip > 0, got 0.0"),
        ({"count": 0}, "expected count >= 1, got 0"),
        ({"strength": float("nan")}, "strength"),
    ],
)
def test_ranges_are_checked(options: dict[str, Any], expected: str) -> None:
    """At each end, open and closed; nan lies in no range."""
    with pytest.raises(UserError, match=expected):
        toy(**options)


@given(st.floats(-1.0, 3.0), st.floats(-1.0, 2.0))
def test_a_range_is_what_it_says(strength: float, share: float) -> None:
    """Accepted iff 0 < strength <= 2 and 0 <= share < 1; directly built cards are checked as well."""
    try:
        Toy(strength=strength, share=share)
    except UserError:
        assert not (0 < strength <= 2 and 0 <= share < 1)
    else:
        assert 0 < strength <= 2 and 0 <= share < 1


def test_all_problems_are_reported_together() -> None:
    """One run of the recipe shows all of its mistakes."""
    with pytest.raises(UserError) as error:
        build_method({"name": "mylab:Toy", "shar": 0.1, "count": "2"})
    for part in ("unknown option 'shar'; did you mean 'share'", "count: expected int", "missing option 'strength'"):
        assert part in str(error.value)


def test_a_card_is_frozen() -> None:
    """Options cannot move after they were checked; ``replace`` checks again."""
    card = Toy(strength=0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.strength = 0.0  # type: ignore[misc]
    with pytest.raises(UserError, match="strength"):
        dataclasses.replace(card, strength=0.0)


def test_examples_come_from_the_options() -> None:
    """Only options that carry one; they build every card whose needs depend on them."""
    assert example_options(Toy) == {"weights": (0.5, 0.25)}  # type: ignore[type-abstract]
    for name in ("ipo_md", "mnpo", "nash_md", "nash_mp", "nash_prox", "maxmin"):
        method = build_method({"name": name, **example_options(load_card(name))})
        assert isinstance(method, Method) and method.needs.feedback


def test_all_names_are_listed_where_they_are_few() -> None:
    """Twelve names fit into a message; forty do not."""
    assert nearest_or_all("bta", ("beta", "tau")) == "; did you mean 'beta'?"
    assert nearest_or_all("zzz", ("b", "a")) == " (known: a, b)"
    assert nearest_or_all("zzz", tuple(f"name_{i}" for i in range(13))) == ""


def test_building_keeps_the_callers_block() -> None:
    """The recipe's mapping is read, not consumed."""
    spec = {"name": "dpo", "beta": 0.1}
    assert build_method(spec) == DPO(beta=0.1)
    assert spec == {"name": "dpo", "beta": 0.1}
