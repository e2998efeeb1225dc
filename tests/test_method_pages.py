"""The cards of the methods in docs/methods/ say what the code says: needs, options, tests, recipes, values."""

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import pytest

from alignment.config import card_needs, load_recipe
from alignment.config.parsing import parse_text
from alignment.methods import build_method, load_card, method_names
from alignment.methods._card import example_options
from alignment.types import Needs
from tests.methods.problem import pair_inputs

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"
NAMES = method_names()
SECTIONS = [
    "What it solves",
    "Loss",
    "What it needs",
    "Options",
    "Differs from the paper",
    "What is tested",
    "Unverified",
    "Recipe",
    "Citation",
]
# Fields of `Needs` that a card names only where they are not at their default.
_RARE = ("full_support", "mix", "stages", "inner_steps", "fits", "num_oracles")
_READS = ("per_token", "confidence", "mismatched", "micro_batch_statistics")


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text()


def section(name: str, heading: str) -> str:
    """The text below a heading of the second level."""
    return re.split(r"^## ", page(name), flags=re.MULTILINE)[1 + SECTIONS.index(heading)].partition("\n")[2]


def recipe_block(name: str) -> str:
    (text,) = re.findall(r"```yaml\n(.*?)```", section(name, "Recipe"), flags=re.DOTALL)
    return str(text)


def needs_table(name: str) -> str:
    """What the card of the code declares; where options decide, with the examples of the card."""
    needs, method = card_needs(name), build_method({"name": name, **_some_options(name)})
    default = Needs(feedback=needs.feedback)
    said = [
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" if value is not True else key
        for key in _RARE
        if (value := _values(needs)[key]) != _values(default)[key]
    ]
    said += [key for key in _READS if _values(needs)[key]]
    cells = [
        f"`{needs.feedback}`",
        ", ".join(f"`{column}`" for column in needs.anchor_columns()) or "none",
        f"`{needs.sampler}`",
        "none" if needs.opponent == "none" else f"`{needs.opponent}`",
        f"`{needs.schedule}`",
        ", ".join(f"`{text}`" for text in said) or "",
        f"`{method.solution}`, {method.iterate}",
    ]
    return (
        "| feedback | frozen log-probs | sampler | opponent | schedule | further | solution, iterate |\n"
        "|---|---|---|---|---|---|---|\n"
        f"| {' | '.join(cells)} |\n"
    ).replace("|  |", "| |")


def options_table(name: str) -> str:
    """Every option with its type, range, default and the paper's value."""
    card = cast(Any, load_card(name))
    types = get_type_hints(card)
    rows = [
        f"| `{spec.name}` | {_kind(types[spec.name])} | {_bounds(spec.metadata)} | {_default(spec)} "
        f"| {spec.metadata['paper']} |"
        for spec in dataclasses.fields(card)
    ]
    head = "| option | type | range | default | the paper |\n|---|---|---|---|---|\n"
    return (head + "\n".join(rows) + "\n").replace("|  |", "| |")


def _values(needs: Needs) -> dict[str, Any]:
    return {spec.name: getattr(needs, spec.name) for spec in dataclasses.fields(needs)}


def _some_options(name: str) -> dict[str, Any]:
    """Examples of the card, and for the rest any value inside the range."""
    card = cast(Any, load_card(name))
    required = [spec for spec in dataclasses.fields(card) if spec.default is dataclasses.MISSING]
    return {spec.name: 0.25 for spec in required} | example_options(card)


def _kind(kind: Any) -> str:
    if isinstance(kind, type) and not get_args(kind):
        return f"`{kind.__name__}`"
    choices = get_args(kind)
    if str(kind).startswith("typing.Literal"):
        return ", ".join(f"`{choice}`" for choice in choices)
    text = re.sub(r"typing\.|collections\.abc\.", "", str(kind)).replace("|", r"\|")
    return f"`{text}`"


def _bounds(metadata: Any) -> str:
    return ", ".join(f"{sign} {limit:g}" for sign, limit in metadata["bounds"].items())


def _default(spec: Any) -> str:
    if spec.default is dataclasses.MISSING:
        return "required"
    return f"`{spec.default if isinstance(spec.default, str) else json.dumps(spec.default)}`"


def test_every_method_has_a_card_and_every_card_a_method() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(["README", *NAMES])


@pytest.mark.parametrize("name", NAMES)
def test_the_sections_come_in_one_order(name: str) -> None:
    assert page(name).startswith(f"# `{name}`: ")
    assert re.findall(r"^## (.*)$", page(name), flags=re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("name", NAMES)
def test_what_it_needs_is_what_the_code_declares(name: str) -> None:
    assert needs_table(name) in section(name, "What it needs"), f"docs/methods/{name}.md: expected\n{needs_table(name)}"


@pytest.mark.parametrize("name", NAMES)
def test_its_options_are_the_fields_of_the_card(name: str) -> None:
    expected = options_table(name)
    assert expected in section(name, "Options"), f"docs/methods/{name}.md: expected\n{expected}"


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_that_it_names_are_there(name: str) -> None:
    named = set(re.findall(r"`(tests/[\w/.]+|scripts/[\w/.]+)`", page(name)))
    assert {f"tests/methods/test_{name}.py", "tests/methods/test_contract.py"} <= named
    assert not [path for path in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize("name", NAMES)
def test_it_owns_up_to_every_difference(name: str) -> None:
    """What the module's docstring says under "Differs from", the card says too; else that there is none."""
    source = ROOT / "alignment" / "methods" / f"{name}.py"
    differs = "Differs from" in (ast.get_docstring(ast.parse(source.read_text())) or "")
    said = section(name, "Differs from the paper")
    assert differs <= (not said.strip().startswith("Nothing"))
    assert said.strip() and section(name, "Unverified").strip()


@pytest.mark.parametrize("name", NAMES)
def test_it_cites_its_paper(name: str) -> None:
    arxiv = load_card(name).paper.arxiv  # type: ignore[union-attr]
    assert f"https://arxiv.org/abs/{arxiv}" in section(name, "Citation")
    assert f"`alignment methods --cite {name}`" in section(name, "Citation")


@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_is_a_recipe_of_the_method(name: str) -> None:
    tree = parse_text(recipe_block(name), name)
    assert tree["method"]["name"] == name and "output_dir" in tree


@pytest.mark.parametrize("name", NAMES)
def test_it_links_the_recipes_that_are_shipped_for_it(name: str) -> None:
    said = section(name, "Recipe")
    assert f"](../../recipes/quickstart/{name}.yaml)" in said and "none of its own" not in said


def test_the_index_links_each_card_once() -> None:
    index = page("README").partition("## Cards")[2].partition("\n## ")[0]
    linked = re.findall(r"\]\((\w+)\.md\)", index)
    assert sorted(linked) == sorted(NAMES)


def test_there_is_a_place_for_what_is_measured() -> None:
    text = page("README")
    assert text.index("<!-- measured:begin -->") < text.index("<!-- measured:end -->")


REFERENCE_VALUES = re.findall(r"^\| `(\{name: .*\})` \| ([\d.]+) \|$", page("README"), flags=re.MULTILINE)


@pytest.mark.parametrize(("spec", "value"), REFERENCE_VALUES, ids=[spec for spec, _ in REFERENCE_VALUES])
def test_reference_values(spec: str, value: str) -> None:
    """The pair of the index under each loss; the digits shown are right."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2], prev=[-4.4, -4.6], lengths=[2, 4])
    loss = build_method(parse_text(f"method: {spec}", "README")["method"]).loss(x).loss_B.item()
    assert loss == pytest.approx(float(value), abs=0.5 * 10.0 ** -len(value.partition(".")[2]))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_takes_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment import loop

    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(recipe_block(name))
    Path("lists.jsonl").write_text(
        "".join(
            f'{{"prompt": "Say {i}.", "responses": ["{i}!", "No {i}.", "?"], "scores": [3, 1, 2]}}\n' for i in range(40)
        )
    )
    small = ["policy.tiny={vocab_size: 300, hidden_size: 16, num_layers: 1, num_heads: 2}", "training.max_steps=2"]
    batch = ["training.per_device_train_batch_size=8", "training.logging_steps=1", "training.disable_tqdm=true"]
    loop.run(load_recipe("recipe.yaml", [*small, *batch]).recipe)
    assert list(tmp_path.rglob("final"))
