"""Iterative recipes from one command: three rounds, redone only where something is missing, refused when it changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignment import iterative, loop
from alignment.config import load_recipe
from alignment.errors import UserError
from alignment.folders import RunResult

ROOT = Path(__file__).parents[1]
SMALL = [
    "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}",
    "training.max_steps=2",
    "training.disable_tqdm=true",
    "training.logging_steps=1",
    "sampling.num_completions=3",
    "sampling.max_new_tokens=4",
]


def run(name: str, folder: Path, *overrides: str) -> RunResult:
    recipe = ROOT / "recipes" / name / "tiny.yaml"
    return loop.run(load_recipe(recipe, [*SMALL, f"output_dir={folder}", *overrides]).recipe)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of MNPO, which reads the two last policies."""
    folder = tmp_path_factory.mktemp("rounds") / "mnpo"
    run("mnpo", folder)
    return folder


def weights(folder: Path, number: int) -> dict[str, Any]:
    return load_file(folder / f"round-{number}" / "model" / "model.safetensors")


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(bool((left[key] == right[key]).all()) for key in left)


def test_each_round_leaves_its_artefacts(finished: Path) -> None:
    for number in (1, 2, 3):
        folder = finished / f"round-{number}"
        for artefact in ("answers.jsonl", "preferences.jsonl", "model"):
            assert (folder / artefact).exists() and (folder / f"{artefact}.manifest.json").exists()
        assert not list(folder.glob("checkpoint-*"))
        entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert entries[0]["round"] == number
    assert not same(weights(finished, 1), weights(finished, 2))
    summary = json.loads((finished / "summary.json").read_text())["after"]
    assert (
        0 <= summary["win_rate_vs_ref_low"] < summary["win_rate_vs_ref"] < summary["win_rate_vs_ref_high"] <= 1
        and summary["win_rate_num_prompts"] == 30
    )
    final = load_file(finished / "final" / "model.safetensors")
    assert same(final, weights(finished, 3))


def test_only_what_is_missing_is_done_again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the last round's model only that is trained, to the same weights: nothing is sampled or asked."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "round-3" / "model")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("round-[12]/**/*")}

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(iterative, "compare_answers", fail)
    monkeypatch.setattr(iterative._Campaign, "_answer", fail)
    run("mnpo", folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("round-[12]/**/*")} == before
    assert same(weights(folder, 3), weights(finished, 3))


def test_a_run_goes_on_with_more_rounds(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    run("mnpo", folder, "schedule.rounds=4")
    assert same(weights(folder, 3), weights(finished, 3)) and (folder / "round-4" / "model").exists()


def test_another_recipe_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match=r"method\.eta \(0\.1 then, 0\.2 now\).*another output_dir"):
        run("mnpo", finished, "method.eta=0.2")


def test_another_length_of_training_is_refused_by_its_artefact(finished: Path) -> None:
    with pytest.raises(UserError, match=r"round-1/model: made by other values of training\.max_steps \(2 then, 3 now"):
        run("mnpo", finished, "training.max_steps=3")


def test_a_crash_at_the_oracle_keeps_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inpo"

    def crash(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("the oracle is gone")

    with monkeypatch.context() as patch:
        patch.setattr(iterative, "compare_answers", crash)
        with pytest.raises(RuntimeError, match="gone"):
            run("inpo", folder, "schedule.rounds=1")
    answers = folder / "round-1" / "answers.jsonl"
    before = answers.stat().st_mtime_ns
    run("inpo", folder, "schedule.rounds=1")
    assert answers.stat().st_mtime_ns == before and (folder / "round-1" / "model").exists()


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the checkpoint of step 2 of 3, the round ends with the weights of an uninterrupted one."""
    settings = ("schedule.rounds=1", "training.max_steps=3", "training.save_strategy=steps", "training.save_steps=1")
    run("inpo", tmp_path / "whole", *settings)

    class Stop(iterative.RunFiles):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_save(args, state, control, **kwargs)
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(iterative, "RunFiles", Stop)
        with pytest.raises(KeyboardInterrupt):
            run("inpo", tmp_path / "cut", *settings)
    shutil.rmtree(tmp_path / "cut" / "round-1" / "checkpoint-3")
    run("inpo", tmp_path / "cut", *settings)
    assert same(weights(tmp_path / "cut", 1), weights(tmp_path / "whole", 1))


def test_rounds_of_an_adapter(tmp_path: Path) -> None:
    """A LoRA policy: rounds hand the adapter on, and its base model stays the reference."""
    lora = "policy.lora={rank: 2, alpha: 4}"
    run("mnpo", tmp_path, lora, "schedule.rounds=2")
    first, second = (
        load_file(tmp_path / f"round-{number}" / "model" / "adapter_model.safetensors") for number in (1, 2)
    )
    assert first.keys() == second.keys() and not same(first, second)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.num_completions=1", "expected at least 2 answers to compare, got 1"),
        ("schedule.pairs=knockout", "expected a power of two for schedule.pairs = 'knockout', got 3"),
        ("oracle=null", "has no oracle"),
        ("schedule.first=dataset", "it needs data.preferences"),
    ],
)
def test_mistakes_are_named_before_anything_loads(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run("mnpo", tmp_path, override)
