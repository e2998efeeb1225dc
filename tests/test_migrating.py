"""The page for those who come from elsewhere names what is there: arguments of the installed TRL, our keys."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from alignment.config.schema import schema_keys
from alignment.config.training import training_keys
from alignment.methods import load_card, method_names

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "migrating.md").read_text()
# Section -> the files of TRL whose fields and arguments the first column names.
SECTIONS = {
    "In all of TRL": ("trainer/dpo_config.py", "trainer/dpo_trainer.py", "trainer/base_config.py"),
    "From TRL's DPOTrainer": ("trainer/dpo_config.py",),
    "From TRL's CPOTrainer": ("experimental/cpo/cpo_config.py",),
    "From TRL's OnlineDPOTrainer": (
        "experimental/online_dpo/online_dpo_config.py",
        "experimental/online_dpo/online_dpo_trainer.py",
    ),
}
# What the installed version no longer has; the page says so.
OLDER = {"judge", "warmup_ratio"}


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def first_column(text: str) -> set[str]:
    """Names between backticks in the first cell of each row, but for the table of losses."""
    cells = [
        line.split("|")[1] for line in text.splitlines() if line.startswith("| `") and not line.count("](methods") > 1
    ]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def names_in_trl(path: str) -> set[str]:
    """Annotated fields of all classes of a file, and arguments of their constructors."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / path).read_text())
    fields = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    constructors = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return fields | {argument.arg for function in constructors for argument in function.args.args}


@pytest.mark.parametrize("heading", SECTIONS)
def test_arguments_of_trl_are_its_own(heading: str) -> None:
    known = set().union(*(names_in_trl(path) for path in SECTIONS[heading]))
    # Arguments that TRL inherits from transformers.
    known |= {key.removeprefix("training.") for key in training_keys()}
    losses = {"sigmoid", "sft"} | set(re.findall(r"\"(\w+)\"", _losses_of_trl()))
    said = first_column(section(heading))
    assert len(said) > 5
    assert not said - known - losses - OLDER


def _losses_of_trl() -> str:
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None
    text = (Path(spec.origin).parent / "trainer" / "dpo_trainer.py").read_text()
    return " ".join(re.findall(r"loss_type == \"\w+\"", text))


def test_every_loss_of_trl_has_a_row() -> None:
    table = section("From TRL's DPOTrainer")
    missing = [name for name in re.findall(r"\"(\w+)\"", _losses_of_trl()) if f"| `{name}` |" not in table]
    assert not missing


def test_our_keys_are_keys_of_a_recipe() -> None:
    """``block.key`` between backticks, in any column: a key of a recipe, or an option of some method."""
    options = {f"method.{name}" for method in method_names() for name in load_card(method).__dataclass_fields__}  # type: ignore[union-attr]
    known = {*schema_keys(), *training_keys(), *options, "method.name"}
    blocks = {key.partition(".")[0] for key in known}
    said = {key for key in re.findall(r"`([a-z_]+\.[a-z_.0-9]+)", PAGE) if key.partition(".")[0] in blocks}
    assert len(said) > 25
    assert not sorted(said - known)
