"""``alignment sample``: answers of any run, the same for the same seed, and every mistake in one line."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alignment.cli import main
from alignment.config import load_recipe
from alignment.data import prompt_text
from alignment.preparation import prepare_data
from tests.runs import small_run

SHORT = ("--max-new-tokens", "4")

Command = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("sample")
    small = ("sampling={num_completions: 2, max_new_tokens: 5}", "schedule.rounds=2", "data.prompts.limit=24")
    return {
        "whole": small_run(folder / "whole", "training.save_strategy=steps", "training.save_steps=1"),
        "adapter": small_run(folder / "adapter", "policy.lora={rank: 2, alpha: 32}"),
        "rounds": small_run(folder / "rounds", *small, "training.max_steps=1", recipe="inpo/tiny"),
    }


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """What ``alignment sample`` prints, and with ``code=2`` its only error."""

    def call(*arguments: str | Path, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["sample", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert stopped.value.code == code, err
        if code == 0:
            return out
        (error,) = [line for line in err.splitlines() if line.startswith("error:")]
        return error

    return call


@pytest.mark.parametrize("kind", ["whole", "adapter", "rounds"])
def test_the_held_out_prompts_of_a_run_are_answered(kind: str, runs: Mapping[str, Path], command: Command) -> None:
    """Its own, in their order, with another answer than the reference's."""
    out = json.loads(command(runs[kind], "--json", "--against", "ref", "--num", 6, "--limit", 3, *SHORT))
    recipe = load_recipe(runs[kind] / "recipe.yaml").recipe
    held_out = prepare_data(recipe.data, seed=recipe.seed, announce=lambda line: None).evaluation
    assert [item["prompt"] for item in out] == [prompt_text(row) for row in held_out[:3]]
    assert all(len(item["answers"]) == len(item["ref"]) == 6 for item in out)
    assert any(item["answers"] != item["ref"] for item in out)


def test_the_same_seed_prints_the_same(runs: Mapping[str, Path], command: Command) -> None:
    asked = (runs["whole"], "--prompt", "Say hello.", "--prompt", "And bye.", "--num", 2, *SHORT)
    first, again, other = (command(*asked, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other and first.count("answer") == 4
    greedy = [command(runs["whole"], "--prompt", "Say hello.", "--temperature", 0, "--seed", s, *SHORT) for s in (1, 2)]
    assert greedy[0] == greedy[1]


def test_policies_do_not_share_random_numbers(tmp_path: Path, runs: Mapping[str, Path], command: Command) -> None:
    """Weights that differ by a rounding error say other things at the same seed; with shared numbers, the same.

    A chance coincidence of 16 answers of 16 tokens by a model that is near uniform has a probability of about 0.
    """
    shutil.copytree(runs["whole"] / "final", tmp_path / "near")
    weights = load_file(tmp_path / "near" / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    weights[name] = weights[name].clone()
    weights[name][0, 0] += 1e-7 * weights[name].abs().max()
    save_file(weights, tmp_path / "near" / "model.safetensors", metadata={"format": "pt"})
    asked = ("--prompt", "Say hello.", "--role", "text", "--num", 16, "--max-new-tokens", 16, "--json")
    ours, near = (
        json.loads(command(folder, *asked))[0]["answers"] for folder in (runs["whole"] / "final", tmp_path / "near")
    )
    assert all(one != other for one, other in zip(ours, near, strict=True))


def test_the_reference_draws_its_own_numbers(runs: Mapping[str, Path], command: Command) -> None:
    """After a step or two the reference is nearly the policy: shared numbers would make most answers the same."""
    asked = ("--prompt", "Say hello.", "--num", 16, "--max-new-tokens", 16, "--json", "--against", "ref")
    (found,) = json.loads(command(runs["whole"], *asked))
    assert all(ours != ref for ours, ref in zip(found["answers"], found["ref"], strict=True))


def test_every_kind_of_folder_is_found(runs: Mapping[str, Path], command: Command) -> None:
    """A run is its final model, which has a folder of its own; a checkpoint is named either way."""
    asked = ("--prompt", "Say hello.", "--role", "text", *SHORT)
    whole = runs["whole"]
    final = command(whole, *asked)
    assert final == command(whole / "final", *asked) == command(whole / "checkpoint-2", *asked)
    assert command(whole, "--checkpoint", 1, *asked) == command(whole / "checkpoint-1", *asked)
    assert command(runs["rounds"], *asked) == command(runs["rounds"] / "round-2" / "model", *asked)


def test_a_prompt_is_what_it_was_in_the_data(runs: Mapping[str, Path], command: Command) -> None:
    """The strings of base/pairs.jsonl are raw text: the default equals that role and not the other one."""
    asked = (runs["whole"], "--prompt", "Say hello.", "--num", 16, "--max-new-tokens", 16)
    default, text, user = (command(*asked, *role) for role in ((), ("--role", "text"), ("--role", "user")))
    assert default == text != user


def test_a_file_becomes_model_outputs(runs: Mapping[str, Path], tmp_path: Path, command: Command) -> None:
    """AlpacaEval's form; a prompt that comes twice is answered once."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in ("One?", "Two?", "One?")))
    out = tmp_path / "answers" / "outputs.json"
    assert command(runs["adapter"], "--prompts", prompts, "--output", out, *SHORT) == ""
    written = json.loads(out.read_text())
    assert [item["instruction"] for item in written] == ["One?", "Two?"]
    assert all(item.keys() == {"instruction", "output", "generator"} for item in written)
    assert {item["generator"] for item in written} == {"adapter"}


def test_the_length_is_that_of_the_recipe(runs: Mapping[str, Path], command: Command) -> None:
    """Rounds sample five tokens; an answer of a random model is hardly ever shorter."""
    asked = (runs["rounds"], "--prompt", "Say hello.", "--num", 4, "--json")
    default, five, six = (command(*asked, *more) for more in ((), ("--max-new-tokens", 5), ("--max-new-tokens", 6)))
    assert default == five != six


MISTAKES = {
    "no folder": (["./nowhere"], "found no './nowhere'"),
    "no model": (["{tmp}"], "expected a language model there"),
    "empty file": (["{run}", "--prompts", "{tmp}/empty.jsonl"], "empty.jsonl"),
    "no file": (["{run}", "--prompts", "{tmp}/none.jsonl"], "none.jsonl"),
    "empty prompt": (["{run}", "--prompt", " "], "got an empty prompt"),
    "two sources": (["{run}", "--prompt", "a", "--prompts", "{tmp}/empty.jsonl"], "got both"),
    "a role": (["{run}", "--prompt", "a", "--role", "system"], "expected text or user, got 'system'"),
    "an opponent": (["{run}", "--against", "sft"], "expected ref, got 'sft'"),
    "greedy twice": (["{run}", "--temperature", "0", "--num", "2"], "expected 1 at temperature 0"),
    "no temperature": (["{run}", "--prompt", "a", "--temperature", "inf"], "expected a finite number, got inf"),
    "many outputs": (["{run}", "--output", "{tmp}/out.json", "--num", "2"], "expected 1 with --output"),
    "no checkpoint": (["{run}", "--checkpoint", "9"], "there are: 1, 2"),
    "too long": (["{run}", "--prompt", "{long}"], "prompt"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(case: str, runs: Mapping[str, Path], tmp_path: Path, command: Command) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    arguments, expected = MISTAKES[case]
    values = {"tmp": tmp_path, "run": runs["whole"], "long": "word " * 200}
    assert expected in command(*(argument.format(**values) for argument in arguments), code=2)


def test_a_run_between_rounds_says_where_its_model_is(
    runs: Mapping[str, Path], tmp_path: Path, command: Command
) -> None:
    """As ``--one-round`` leaves it; the tenth comes after the second."""
    for name in ("round-1", "round-2", "round-10"):
        shutil.copytree(runs["rounds"] / "round-1" / "model", tmp_path / name / "model")
    # Begun, and without a model.
    (tmp_path / "round-11").mkdir()
    assert command(tmp_path, code=2).endswith("found none; there is round-10/model")


def test_a_model_of_unknown_origin_needs_prompts(runs: Mapping[str, Path], tmp_path: Path, command: Command) -> None:
    """The same weights without their recipe: they answer, and nothing says what is held out or the reference."""
    shutil.copytree(runs["whole"] / "final", tmp_path / "plain")
    asked = ("--prompt", "Say hello.", "--role", "text", *SHORT)
    assert command(tmp_path / "plain", *asked) == command(runs["whole"], *asked)
    assert "no recipe names held-out prompts" in command(tmp_path / "plain", code=2)
    assert "say what the reference is" in command(tmp_path / "plain", *asked, "--against", "ref", code=2)
