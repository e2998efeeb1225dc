"""Iterative runs that are killed, tampered with or fed with bad answers: resumed to the same weights, or refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignment import iterative, loop, players
from alignment.artefacts import Artefact
from alignment.config import load_recipe
from alignment.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = [
    "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}",
    "training.max_steps=1",
    "training.disable_tqdm=true",
    "training.logging_steps=1",
    "sampling.num_completions=2",
    "sampling.max_new_tokens=2",
    "schedule.rounds=2",
]


def run(folder: Path, *overrides: str) -> None:
    recipe = ROOT / "recipes" / "inpo" / "tiny.yaml"
    loop.run(load_recipe(recipe, [*SMALL, f"output_dir={folder}", *overrides]).recipe)


def weights(folder: Path, number: int = 2) -> dict[str, Tensor]:
    return load_file(folder / f"round-{number}" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "inpo"
    run(folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.slow
@pytest.mark.parametrize("after", range(6))
def test_killed_before_any_manifest_it_ends_with_the_same_weights(
    after: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the six stages of two rounds, with its result on disk and not yet declared whole."""
    finish, calls = Artefact.finish, []

    def killed(artefact: Artefact, **notes: Any) -> None:
        if len(calls) == after:
            raise KilledError(artefact.path)
        calls.append(artefact.path)
        finish(artefact, **notes)

    with monkeypatch.context() as patch:
        patch.setattr(Artefact, "finish", killed)
        with pytest.raises(KilledError):
            run(tmp_path / "cut")
    run(tmp_path / "cut")
    expected = weights(finished)
    assert all(torch.equal(value, expected[key]) for key, value in weights(tmp_path / "cut").items())


@pytest.mark.parametrize("artefact", ["answers", "preferences"])
def test_rows_that_are_gone_are_noticed(artefact: str, copied: Path) -> None:
    """A file cut at the end of a line is valid row by row; training on what is left would be another run."""
    path = copied / "round-2" / f"{artefact}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    shutil.rmtree(copied / "round-2" / "model")
    with pytest.raises(UserError, match=rf"round-2/{artefact}\.jsonl: expected what its manifest speaks of"):
        run(copied)


def test_a_torn_manifest_is_named(copied: Path) -> None:
    (copied / "round-2" / "answers.jsonl.manifest.json").write_text('{"fingerprint": "ab')
    with pytest.raises(UserError, match=r"answers\.jsonl\.manifest\.json: expected JSON, got .*delete it"):
        run(copied)


def test_another_tau_is_refused_with_the_reason(copied: Path) -> None:
    """Between rounds and before the last one; nothing is overwritten."""
    shutil.rmtree(copied / "round-2")
    before = {path: path.stat().st_mtime_ns for path in copied.glob("round-1/**/*")}
    with pytest.raises(UserError, match=r"method\.tau \(.* then, 0\.07 now\)"):
        run(copied, "method.tau=0.07")
    assert {path: path.stat().st_mtime_ns for path in copied.glob("round-1/**/*")} == before


def test_fewer_prompts_than_rounds_cannot_be_divided(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(3)))
    few = ("data.eval_fraction=0", f"data.prompts.path={prompts}", "schedule.prompts=split", "schedule.rounds=4")
    with pytest.raises(UserError, match="expected a prompt for each of 4 rounds to divide among them, found 3"):
        run(tmp_path / "run", *few)


class Wrong:
    """An oracle that is not a number."""

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        return torch.full((len(prompts),), torch.nan)


def test_an_oracle_that_says_nan_leaves_answers_and_no_preferences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iterative, "build_oracle", lambda *arguments: Wrong())
    with pytest.raises(UserError, match=r"expected a probability in \[0, 1\], got nan for prompt"):
        run(tmp_path / "run")
    assert (tmp_path / "run" / "round-1" / "answers.jsonl.manifest.json").exists()
    assert not (tmp_path / "run" / "round-1" / "preferences.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sampling.max_new_tokens=4000", r"max_new_tokens = 4000"),
        (
            "evaluation.max_new_tokens=4000",
            r"win_rate_max_new_tokens \(in a recipe evaluation\.max_new_tokens\) = 4000",
        ),
    ],
)
def test_a_context_without_room_is_named_before_anything_is_sampled(override: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"room for {named} behind every prompt in the 2048 positions"):
        run(tmp_path / "run", override)
    assert not (tmp_path / "run" / "round-1").exists()


def test_shares_of_bad_answers_are_logged(finished: Path) -> None:
    """In the lines of every round, and in the manifest of its answers."""
    entries = [json.loads(line) for line in (finished / "round-1" / "metrics.jsonl").read_text().splitlines()]
    (entry,) = [entry for entry in entries if "loss" in entry]
    assert 0.0 <= entry["empty_responses"] <= 1.0 and entry["identical_groups"] == 0.0
    assert json.loads((finished / "round-1" / "answers.jsonl.manifest.json").read_text())["empty_answers"] >= 0


@pytest.mark.parametrize("name", ["inpo", "sppo"])
def test_answers_that_are_all_alike(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy of one answer: nothing for a loss of pairs, which says so; a loss of win rates trains on its ties."""
    answer_prompts = players.answer_prompts

    def one_answer(*arguments: Any, **options: Any) -> Any:
        return tuple(
            replace(
                item,
                completion_ids=(item.completion_ids[0],) * 2,
                row=replace(item.row, responses=(item.row.responses[0],) * 2),
            )
            if len(item.completion_ids) == 2
            else item
            for item in answer_prompts(*arguments, **options)
        )

    monkeypatch.setattr(players, "answer_prompts", one_answer)
    if name == "inpo":
        with pytest.raises(UserError, match=r"no prompt has answers that can be compared .*answers all alike"):
            run(tmp_path / "run", "schedule.rounds=1")
        return
    run(tmp_path / "run", "schedule.rounds=1", "method.name=sppo")
    entries = [json.loads(line) for line in (tmp_path / "run" / "round-1" / "metrics.jsonl").read_text().splitlines()]
    # At the start of a round log pi/prev is 0, and so is the target of a tie.
    assert entries[0]["identical_groups"] == 1.0 and entries[0]["loss"] == pytest.approx(0.0, abs=1e-6)
