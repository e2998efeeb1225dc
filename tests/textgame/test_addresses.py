"""Recipes name the text game by addresses, and their runs end with its exact figures."""

import json
from pathlib import Path

import pytest
import torch

from alignment import loop
from alignment.budgets import planned_verdicts
from alignment.config import DataSource, LoadedRecipe, load_recipe
from alignment.doctor import examine
from alignment.errors import UserError
from alignment.oracles import ask, build_oracle
from alignment.preparation import read_source
from alignment.textgame import EnumeratedPolicy, ExactFigures, TextGame, resolve_model

QUICK = (
    *("evaluation.every=null", "evaluation.num_completions=2"),
    *("training.max_steps=2", "training.warmup_steps=0", "training.disable_tqdm=true"),
)
OFFLINE = ("data.preferences.limit=60",)


def load(name: str, folder: Path, *overrides: str) -> LoadedRecipe:
    return load_recipe(f"recipes/quickstart/{name}.yaml", (*QUICK, f"output_dir={folder}", *overrides))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "textgame://pears"}, "expected one of textgame://prompts, .*, got 'textgame://pears'"),
        ({"path": "textgame://pairs", "format": "pairs"}, "by itself, with limit or weight at most, got also format"),
        ({"path": ["textgame://pairs", "a.jsonl"]}, "got 2 paths"),
        ({"path": "textgame://pairs?answers=4"}, "after comparisons or lists or scores only, got 'textgame://pairs"),
        ({"path": "textgame://lists?answers=1"}, r"expected \?answers=N, at least 2"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:12],
)
def test_a_wrong_address_is_refused(source: dict, message: str, addressed: TextGame) -> None:
    with pytest.raises(UserError, match=message):
        read_source(DataSource.model_validate(source))


@pytest.mark.parametrize("name", ["dpo", "egpo"])
def test_a_resolved_recipe_can_be_run(name: str, addressed: TextGame, tmp_path: Path) -> None:
    """What a run writes down beside its checkpoints names the same rows, by keys that an address takes."""
    recipe = load(name, tmp_path, *(OFFLINE if name == "dpo" else ())).recipe
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "recipe.yaml").recipe
    assert again == recipe and again.data.evaluation is not None
    for source in (*again.data.sources, again.data.evaluation):
        assert read_source(source).num_read in (30, 60)


def test_other_names_stay(addressed: TextGame) -> None:
    assert resolve_model("owner/model") == "owner/model"
    with pytest.raises(UserError, match=r"expected 'textgame://model'.*got 'textgame://big'"):
        resolve_model("textgame://big")


def test_the_address_is_the_model_of_the_game(addressed: TextGame) -> None:
    from alignment.trained import find_model

    model = find_model("textgame://model").load()
    assert torch.equal(addressed.policy_XA(model).policy_XA, addressed.ref_XA)


def test_each_group_answers_for_itself(addressed: TextGame) -> None:
    question, answers = addressed.world.questions[0], addressed.world.answers[0]
    for group in (None, "schools", "minority"):
        oracle = build_oracle({"kind": "textgame", **({"group": group} if group else {})})
        prefs_XAA = addressed.crowd_preferences if group is None else addressed.group_preferences[group]
        answer = float(ask(oracle, [question], [answers[3]], [answers[200]]))
        assert answer == pytest.approx(float(prefs_XAA[0, 3, 200]), abs=1e-12)


def test_the_figures_of_the_reference_are_known(text: TextGame) -> None:
    figures = ExactFigures(text, tau=0.04)(text.ref)
    gap = float(text.game(tau=0.04).duality_gap(text.ref_XA).mean())
    assert figures.pop("exact_gap") == pytest.approx(gap)
    assert 0.0 < figures.pop("exact_outside") < 1.0
    assert figures.pop("exact_kl_to_ref") == pytest.approx(0.0, abs=1e-12)
    assert figures == pytest.approx(dict.fromkeys(figures, 0.5)) and len(figures) == 4


def test_win_rates_count_texts_that_are_no_answers(text: TextGame, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that says answer 7 or, one time in four, nonsense; the reference says nonsense one time in ten.

    Of the crowd: .75 x .9 x P(7 > ref) where both answer, .75 x .1 where only the policy does, half of .25 x .1.
    """
    certain_XA = torch.zeros_like(text.ref_XA)
    certain_XA[:, 7] = 1.0
    ref_XA = text.ref_XA
    played = {
        "policy": EnumeratedPolicy(policy_XA=certain_XA, outside_X=torch.full((30,), 0.25, dtype=torch.float64)),
        "ref": EnumeratedPolicy(policy_XA=ref_XA, outside_X=torch.full((30,), 0.1, dtype=torch.float64)),
    }
    monkeypatch.setattr(TextGame, "policy_XA", lambda self, model: played["ref" if model is text.ref else "policy"])
    figures = ExactFigures(text, tau=0.0)(torch.nn.Identity())
    wins = {
        name: float(torch.einsum("xb,xb->x", prefs_XAA[:, 7], ref_XA).mean())
        for name, prefs_XAA in text.group_preferences.items()
    }
    for name, rate in wins.items():
        assert figures[f"exact_win_rate_{name}"] == pytest.approx(0.675 * rate + 0.075 + 0.0125)
    # The crowd is the groups by their share.
    crowd = 0.88 * figures["exact_win_rate_schools"] + 0.12 * figures["exact_win_rate_minority"]
    assert figures["exact_win_rate"] == pytest.approx(crowd)
    assert figures["exact_win_rate_worst"] == min(figures[f"exact_win_rate_{name}"] for name in wins)
    assert figures["exact_outside"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "overrides", "calls"),
    [
        ("dpo", OFFLINE, 60 * 120),
        pytest.param("kto", (*OFFLINE, "training.per_device_train_batch_size=30"), 60, marks=pytest.mark.slow),
        pytest.param("online_ipo", (), 2 * 15 * 120, marks=pytest.mark.slow),
        ("egpo", (), 2 * 2 * 30 * 8 * 4),
        pytest.param("maxmin", (), 2 * 2 * 30 * 8 * 4, marks=pytest.mark.slow),
        ("inpo", ("schedule.rounds=2", "data.prompts.limit=30"), 2 * 30 * 120),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_counts_its_verdicts_and_shows_its_answers(
    name: str, overrides: tuple[str, ...], calls: int, addressed: TextGame, tmp_path: Path
) -> None:
    """Evaluations ask as well, and are not counted: verdicts are those that the policy learned from."""
    recipe = load(name, tmp_path / "run", *overrides).recipe
    loop.run(recipe)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["oracle_calls"] == calls == planned_verdicts(recipe)
    assert summary["seconds"] > 0
    game = addressed.game(tau=0.04)
    assert summary["before"]["exact_gap"] == pytest.approx(float(game.duality_gap(addressed.ref_XA).mean()), rel=1e-5)
    # Random weights say no answer of the game, so that what they say of themselves is all a tie.
    has_moved = summary["after"]["exact_gap"] != summary["before"]["exact_gap"]
    assert has_moved or recipe.schedule.kind != "offline"
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 30 * 2
    rate = sum(sample["win"] for sample in samples) / len(samples)
    assert rate == pytest.approx(summary["after"]["win_rate_vs_ref"], abs=1e-6)


def test_exact_figures_are_for_the_game_alone() -> None:
    with pytest.raises(UserError, match=r"textgame://model with evaluation\.exact.*got policy\.tiny"):
        load_recipe("recipes/dpo/tiny.yaml", ["evaluation={exact: {tau: 0.1}}"])


@pytest.mark.parametrize("name", ["dpo", "egpo", "inpo"])
def test_the_doctor_finds_the_quickstart_sound(name: str, addressed: TextGame, tmp_path: Path) -> None:
    overrides = OFFLINE if name == "dpo" else ()
    examination = examine(load(name, tmp_path, *overrides).recipe, num_rows=1)
    assert examination.is_sound, examination.findings
