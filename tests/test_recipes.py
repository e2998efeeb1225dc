"""Every shipped recipe loads strictly, says how it is run, and gives its numbers a source."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from alignment.config import build_arguments, load_recipe, recipes_folder, shipped_recipes
from alignment.config.ablation import load_ablation
from alignment.config.evaluation import load_evaluation_recipe
from alignment.config.fitting import load_reward_recipe, load_sft_recipe
from alignment.config.parsing import read_mapping
from alignment.doctor.numbers import check_learning_rate, check_numbers
from alignment.optimizer_options import check_optimizer

FOLDER = recipes_folder()
RECIPES = [path.as_posix() for path in shipped_recipes()]
# Folders of commands; all others are methods, or hold methods.
COMMANDS = {
    "sft": load_sft_recipe,
    "reward": load_reward_recipe,
    "evaluation": load_evaluation_recipe,
    "ablations": load_ablation,
}
VERBS = {"evaluation": "evaluate", "ablations": "ablate"}
OF_METHODS = [name for name in RECIPES if name.partition("/")[0] not in COMMANDS]
VARIABLES = ("ALIGNMENT_REAL_DATA", "PREFERENCES", "PROMPTS", "JUDGE")


def device_of(name: str) -> str:
    """The line that says where a recipe was measured."""
    return (FOLDER / name).read_text().splitlines()[1]


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"somewhere-{name.lower()}")


def load(name: str) -> Any:
    return COMMANDS.get(name.partition("/")[0], load_recipe)(FOLDER / name)


@pytest.mark.parametrize("name", RECIPES)
def test_it_loads_without_a_note(name: str) -> None:
    assert load(name).notes == ()


@pytest.mark.parametrize("name", RECIPES)
def test_it_opens_with_its_command_and_its_device(name: str) -> None:
    command, measured, *_ = (FOLDER / name).read_text().splitlines()
    assert command.startswith("# ")
    folder = name.partition("/")[0]
    verb = VERBS.get(folder, folder) if folder in COMMANDS else "train"
    launched = r"accelerate launch --config_file (recipes/accelerate/\w+\.yaml) scripts/train\.py"
    run = re.search(rf"(?:alignment {verb}|{launched}) recipes/{re.escape(name)}$", command)
    assert run is not None
    assert run[1] is None or (FOLDER.parent / run[1]).is_file()
    assert measured.startswith("# ")
    assert "CPU" in measured or "GPU" in measured


@pytest.mark.parametrize("name", OF_METHODS)
def test_its_folder_is_its_method(name: str) -> None:
    path = Path(name)
    place = path.stem if path.parts[0] == "quickstart" else path.parts[0]
    assert load_recipe(FOLDER / name).recipe.method["name"] == place


@pytest.mark.parametrize("name", [name for name in OF_METHODS if "CPU" in device_of(name)])
def test_the_doctor_fails_none_of_its_numbers(name: str) -> None:
    """Whoever looks before training by a shipped recipe is not sent away; its data are read by slower tests."""
    recipe = load_recipe(FOLDER / name).recipe
    findings = [*check_numbers(recipe), check_learning_rate(recipe, build_arguments(recipe), num_rows=10_000)]
    assert not [finding.text for finding in findings if finding.verdict == "fail"]


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("evaluation/")])
def test_its_optimizer_and_its_scheduler_read_all_of_their_options(name: str) -> None:
    loaded = load(name)
    recipes = [cell.recipe for cell in loaded.cells] if name.startswith("ablations/") else [loaded.recipe]
    for recipe in recipes:
        settings = {"output_dir": recipe.output_dir, "use_cpu": True, **recipe.training}
        check_optimizer(TrainingArguments(**settings))


@pytest.mark.parametrize("name", RECIPES)
def test_each_hyper_parameter_has_a_source(name: str) -> None:
    """Options of the method, the learning rate and the sampler's settings carry a comment on their own line."""
    tree = read_mapping(FOLDER / name)
    tuned = {
        *tree.get("method", {}),
        *tree.get("mixture", {}),
        "learning_rate",
        *tree.get("sampling", {}),
        *tree.get("sampling", {}).get("opponent", {}),
    }
    for line in (FOLDER / name).read_text().splitlines():
        key, colon, value = line.strip().partition(":")
        if colon and key in tuned - {"name", "opponent", "max_new_tokens"}:
            assert "#" in value, f"{name}: '{key}' has no source"


def test_runs_do_not_share_a_folder() -> None:
    folders = Counter(load(name).recipe.output_dir for name in RECIPES)
    assert folders.most_common(1)[0][1] == 1, folders.most_common(3)


def test_the_readme_lists_every_recipe_and_every_key() -> None:
    text = (FOLDER / "README.md").read_text()
    missing = [name for name in RECIPES if f"]({name})" not in text]
    assert not missing
    schema = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    from alignment.config.schema import schema_keys

    def paths(tree: dict, prefix: str = "") -> set[str]:
        nested = [paths(value, f"{prefix}{key}.") for key, value in tree.items() if isinstance(value, dict)]
        return {prefix + key for key in tree}.union(*nested)

    # Every source takes the keys of `preferences`, which the text says once.
    sources = ("data.prompts.", "data.evaluation.", "data.decontaminate.against.")
    # Names of players are free.
    expected = {key for key in schema_keys() if not key.startswith((*sources, "players."))}
    assert expected <= paths(schema)


def test_the_two_recipes_on_hh_differ_in_their_loss_only() -> None:
    """What makes the comparison of undesirable sets fair."""
    trees = [load_recipe(FOLDER / name / "tiny_hh.yaml").recipe.model_dump() for name in ("dpo", "cpo")]
    assert {key for key in trees[0] if trees[0][key] != trees[1][key]} == {"method", "output_dir"}


def test_the_pairs_of_the_tiny_recipes_are_sound() -> None:
    rows = [json.loads(line) for line in (FOLDER / "base" / "pairs.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 120
    assert all(row.keys() == {"prompt", "chosen", "rejected"} and row["chosen"] != row["rejected"] for row in rows)
    # Length alone must not tell the two apart, or the example would teach brevity and nothing else.
    shorter = sum(len(row["chosen"]) < len(row["rejected"]) for row in rows)
    assert 0.35 < shorter / len(rows) < 0.65


@pytest.mark.parametrize("path", sorted((FOLDER / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_launcher_configurations_name_their_command(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(
        f"# accelerate launch --config_file recipes/accelerate/{path.name} scripts/train.py recipes/"
    )
    assert yaml.safe_load(text)["num_processes"] >= 1
    recipe = text.splitlines()[0].rpartition("scripts/train.py recipes/")[2]
    assert recipe in RECIPES


@pytest.mark.parametrize("path", sorted((FOLDER / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_accepts_the_launcher_configurations(path: Path) -> None:
    """Its loader refuses unknown keys; the keys of its nested blocks must be options of its launcher."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    loaded = load_config_from_file(str(path))
    options = vars(launch_command_parser().parse_args(["script.py"]))
    for block in (loaded.deepspeed_config, loaded.fsdp_config):
        assert {key for key in block if key not in options} == set()
    if loaded.deepspeed_config:
        settings = loaded.deepspeed_config
        assert (settings["gradient_accumulation_steps"], settings["gradient_clipping"]) == ("auto", "auto")
        assert settings["zero3_init_flag"] is False, "anchors are copied and hashed as whole weights"


def test_the_cpu_launcher_is_of_the_type_that_starts_processes() -> None:
    """``MULTI_CPU`` silently starts one process (measured with accelerate 1.15)."""
    config = yaml.safe_load((FOLDER / "accelerate" / "ddp_cpu.yaml").read_text())
    assert (config["distributed_type"], config["num_processes"]) == ("MULTI_GPU", 2)
