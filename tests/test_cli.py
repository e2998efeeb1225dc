"""The commands: help, exit codes, what goes to which stream, and what must not be imported."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.cli import main
from alignment.config import Recipe
from alignment.methods import method_names

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    [],
    ["train"],
    ["rollout"],
    ["judge"],
    ["annotate"],
    ["sft"],
    ["reward"],
    ["ablate"],
    ["sample"],
    ["export"],
    ["evaluate"],
    ["score"],
    ["report"],
    ["doctor"],
    ["plan"],
    ["diagnose"],
    ["crossplay"],
    ["methods"],
    ["game"],
    ["recipes"],
    ["recipes", "list"],
    ["recipes", "copy"],
]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
            raise SystemExit(0)
        out, err = capsys.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return code, out, err

    return call


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What the command hands to the loop, which does not run."""
    recipes: list[Recipe] = []
    loop = types.ModuleType("alignment.loop")
    loop.__dict__["run"] = recipes.append
    import alignment

    monkeypatch.setitem(sys.modules, "alignment.loop", loop)
    monkeypatch.setattr(alignment, "loop", loop, raising=False)
    return recipes


def fresh(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def catching(arguments: list[str]) -> str:
    lines = ["from alignment.cli import main", "try:", f"    main({arguments})", "except SystemExit as stop:"]
    return "\n".join([*lines, "    assert not stop.code"])


# Help and imports


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(run: Run, command: list[str]) -> None:
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: alignment")
    assert f"Example: alignment {' '.join(command)}" in out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(*command, "--help")[1].splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("...") and "Usage" not in line], "what a command does is whole"


def test_a_shell_can_complete_commands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "_ALIGNMENT_COMPLETE": "complete_bash",
        "COMP_WORDS": "alignment rep",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert run() == (0, "report\n", "")


def test_version(run: Run) -> None:
    import alignment

    assert run("--version") == (0, f"alignment {alignment.__version__}\n", "")


def test_help_imports_no_framework() -> None:
    assert not fresh(catching(["--help"])) & {"torch", "transformers", "numpy", "pydantic", "yaml", "matplotlib"}


def test_methods_imports_no_language_model_stack() -> None:
    loaded = fresh(catching(["methods", "--json"]))
    assert "torch" in loaded
    assert not loaded & {"transformers", "trl", "peft", "accelerate", "datasets", "matplotlib"}


@pytest.mark.parametrize("arguments", [["trian"], ["game"], ["train"], ["recipes", "copy"], ["methods", "--jsn"]])
def test_a_wrong_call_exits_with_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: alignment" in err


def test_colours_are_off_without_a_terminal(run: Run) -> None:
    for arguments in (["methods"], ["--help"], ["train", "none.yaml"]):
        _, out, err = run(*arguments)
        assert "\x1b" not in out + err


def test_an_interrupt_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch, trained: list[Recipe]) -> None:
    def interrupt(recipe: Recipe) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["alignment.loop"], "run", interrupt)
    assert run("train", "recipes/dpo/tiny.yaml")[0] == 130


# train


def test_train_hands_the_recipe_to_the_loop(run: Run, trained: list[Recipe]) -> None:
    code, out, err = run("train", str(ROOT / "recipes/dpo/tiny.yaml"), "seed=7")
    assert (code, out, err) == (0, "", "")
    assert [recipe.seed for recipe in trained] == [7]


def test_train_prints_what_a_swap_dropped(run: Run, trained: list[Recipe]) -> None:
    recipe = str(ROOT / "recipes/dpo/tiny.yaml")
    code, _, err = run("train", recipe, "method.name=ipo", "method.tau=0.1")
    assert (code, err) == (0, "note: method dpo -> ipo: dropped beta; set tau=0.1\n")
    assert trained[0].method == {"name": "ipo", "tau": 0.1}


def test_one_process_of_a_launch_prints_the_notes(
    run: Run, trained: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    recipe = str(ROOT / "recipes/dpo/tiny.yaml")
    assert run("train", recipe, "method.name=ipo", "method.tau=0.1") == (0, "", "")


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["method.name=egpo", "method.tau=0.1"],
            [
                "error: method 'egpo' needs schedule 'online' and an oracle that answers on fresh samples; "
                "the recipe says schedule.kind = 'offline' and has no oracle",
                "error: method 'egpo' samples its responses: it needs data.prompts; the recipe has data.preferences",
            ],
        ),
        (["method.nme=ipo"], ["error: unknown key 'method.nme'; did you mean 'method.name'?"]),
        (["seed"], ["error: override 'seed': expected key.sub=value, for example training.learning_rate=1e-6"]),
    ],
)
def test_a_users_mistake_is_a_line_and_nothing_runs(
    run: Run, trained: list[Recipe], overrides: list[str], lines: list[str]
) -> None:
    code, out, err = run("train", str(ROOT / "recipes/dpo/tiny.yaml"), *overrides)
    assert (code, out, err.splitlines()) == (2, "", lines)
    assert not trained


def test_a_file_that_is_missing_later_is_a_line_too(
    run: Run, trained: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_data(recipe: Recipe) -> None:
        Path("none.jsonl").read_text()

    monkeypatch.setattr(sys.modules["alignment.loop"], "run", open_data)
    code, _, err = run("train", str(ROOT / "recipes/dpo/tiny.yaml"))
    assert (code, err) == (2, "error: no such file: 'none.jsonl'\n")


def test_the_script_is_the_same_entry() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/train.py"), "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.startswith("Usage: alignment train")


# methods


def test_methods_lists_every_card(run: Run) -> None:
    code, out, _ = run("methods")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()[1:] if line and not line.startswith(("needs:", " "))]
    assert names == list(method_names())
    rows = {line.split()[0]: line for line in out.splitlines() if line and not line.startswith(" ")}
    assert "2503.08942" in rows["egpo"]
    assert all(rows[name].rstrip().endswith("games + text") for name in method_names())


def test_methods_as_json(run: Run) -> None:
    described = {row["name"]: row for row in json.loads(run("methods", "--json")[1])}
    assert described.keys() == set(method_names())
    keys = "name title arxiv schedule feedback anchors sampler opponent stages solution status options"
    assert list(described["dpo"]) == keys.split()
    egpo = {
        key: described["egpo"][key] for key in ("schedule", "feedback", "anchors", "opponent", "stages", "solution")
    }
    assert egpo == {
        "schedule": "online",
        "feedback": "wins",
        "anchors": ["ref"],
        "opponent": "fresh",
        "stages": 2,
        "solution": "kl_nash",
    }
    beta, normalize = described["dpo"]["options"][0], described["ipo"]["options"][1]
    assert (beta["name"], beta["type"], "default" in beta) == ("beta", "float", False)
    assert beta["paper"].startswith("the paper uses 0.1")
    assert (normalize["name"], normalize["type"], normalize["default"]) == ("length_normalize", "bool", True)


def test_cite_prints_bibtex_only(run: Run) -> None:
    code, out, err = run("methods", "--cite", "dpo")
    assert (code, err) == (0, "")
    assert out.startswith("@misc{dpo,\n")
    assert out.endswith("}\n")
    code, out, err = run("methods", "--cite", "dpoo")
    assert (code, out) == (2, "")
    assert "did you mean 'dpo'?" in err


# game


def test_game_prints_gaps_and_writes_them(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    arguments = ["game", "--methods", "egpo,nash_mp", "--iterations", "3", "--num-games", "2", "--seed", "1,2"]
    code, out, err = run(*arguments, "--num-actions", "3", "--output-dir", str(folder))
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["method", "median", "gap", "max", "gap", "gradients", "seconds"]
    assert [line.split()[0] for line in lines[1:3]] == ["egpo", "nash_mp"]
    # a = 4 lr / n, with the protocol's lr = 0.1 at tau = 0.1 and n = 3 actions.
    assert "step a = 0.133333" in out
    assert [line.split()[0] for line in lines[-4:]] == ["0", "1", "2", "3"]
    assert err.splitlines() == [f"wrote {folder / 'gaps.json'}", f"wrote {folder / 'gap.png'}"]
    assert (folder / "gap.png").stat().st_size > 0


def test_game_as_json(run: Run) -> None:
    code, out, _ = run("game", "--methods", "nash_mp", "--games", "rps", "--tau", "0.5", "--iterations", "2", "--json")
    assert code == 0
    assert json.loads(out)["methods"][0]["method"] == "nash_mp"


def test_game_passes_every_option(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import alignment.protocol

    asked: dict[str, Any] = {}

    def protocol(**options: Any) -> Any:
        asked.update(options)
        options["progress"]("x", 1, 2)
        return types.SimpleNamespace(to_json=lambda: {"x": torch.ones(1).tolist()}, save=lambda folder: [folder])

    monkeypatch.setattr(alignment.protocol, "run_protocol", protocol)
    options = "--games cyclic --tau 0.2 --lr 0.3 --iterations 4 --seed 5,6 --num-games 7 --num-actions 8 --json"
    assert run("game", "--methods", "a, b", *options.split())[0] == 0
    del asked["progress"]
    assert asked == {
        "games": "cyclic",
        "methods": ["a", "b"],
        "tau": 0.2,
        "lr": 0.3,
        "iterations": 4,
        "seeds": [5, 6],
        "num_games": 7,
        "num_actions": 8,
    }


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--methods", "egpo", "--seed", "a"], "error: --seed: expected integers with commas, got 'a'"),
        (["--methods", ","], "error: --methods: expected a list with commas, got ','"),
        (["--methods", "egpo", "--games", "chess"], "error: unknown games 'chess'"),
        (["--methods", "egpo", "--seed", "-1"], "error: seed: expected numbers of at least 0, got -1"),
        (["--methods", "egpoo"], "error: unknown method 'egpoo'; did you mean 'egpo'?"),
    ],
)
def test_wrong_options_of_game(run: Run, arguments: list[str], line: str) -> None:
    code, out, err = run("game", *arguments, "--iterations", "1")
    assert (code, out) == (2, "")
    assert err.startswith(line)


# recipes


def test_recipes_list(run: Run) -> None:
    code, out, _ = run("recipes", "list")
    assert code == 0
    assert any(line.startswith("recipes/dpo/tiny.yaml ") and "CPU" in line for line in out.splitlines())
    listed = json.loads(run("recipes", "list", "--json")[1])
    assert [row["recipe"] for row in listed] == [line.split()[0] for line in out.splitlines()]
    assert not any("accelerate" in row["recipe"] for row in listed)


def test_recipes_copy_does_not_overwrite(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    assert run("recipes", "copy", str(folder))[0] == 0
    copied = folder / "dpo" / "tiny.yaml"
    shipped = copied.read_text()
    assert shipped == (ROOT / "recipes/dpo/tiny.yaml").read_text()
    copied.write_text("edited")
    code, _, err = run("recipes", "copy", str(folder))
    assert code == 2
    assert "would be overwritten; name another folder, or add --force" in err
    assert copied.read_text() == "edited"
    assert run("recipes", "copy", str(folder), "--force")[0] == 0
    assert copied.read_text() == shipped


def test_a_recipe_of_another_command_is_recognised(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNMENT_REAL_DATA", "nowhere")
    for command, recipe, found in (
        ("reward", "dpo/tiny_hh", "`alignment train`"),
        ("evaluate", "dpo/tiny", "`alignment train`"),
        ("ablate", "dpo/tiny", "`alignment train`"),
        ("train", "reward/tiny_hh", "`alignment sft` or `alignment reward`"),
        ("doctor", "sft/tiny_hh", "`alignment sft` or `alignment reward`"),
        ("train", "evaluation/textgame", "`alignment evaluate`"),
        ("train", "ablations/tau", "`alignment ablate`"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([command, f"recipes/{recipe}.yaml"])
        asked = "train" if command == "doctor" else command
        said = f"expected a recipe of `alignment {asked}`, found one of {found}"
        assert stopped.value.code == 2 and said in capsys.readouterr().err
