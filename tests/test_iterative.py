"""Iterative recipes from one command: three rounds, redone only where something is missing, refused when it changed."""

import gc
import itertools
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from alignment import iterative, loop, players
from alignment.artefacts import Artefact
from alignment.config import load_recipe
from alignment.errors import UserError
from alignment.folders import RunResult
from alignment.models import load_policy
from alignment.oracles.rules import shorter
from alignment.round_models import RoundModels

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

    monkeypatch.setattr(players, "compare_answers", fail)
    monkeypatch.setattr(players.Player, "_answer", fail)
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


def test_another_effective_batch_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match=r"round-1/model: trained with an effective batch of 16 .* 1 process.* has 8;"):
        run("mnpo", finished, "training.per_device_train_batch_size=8")


def test_the_same_batch_may_be_divided_and_computed_otherwise(finished: Path, tmp_path: Path) -> None:
    """As a machine with less memory has it: smaller batches, of answers too, stored log-probs, another layout."""
    divided = ("training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=2")
    divided += ("training.per_device_eval_batch_size=3", "anchors.store=true", "scoring.layout=dense")
    divided += ("training.logging_steps=2", "data.cache=false")
    for name, settings in {"as before": (), "divided": divided}.items():
        shutil.copytree(finished, tmp_path / name)
        run("mnpo", tmp_path / name, "schedule.rounds=4", *settings)
    answers = [(tmp_path / name / "round-4" / "answers.jsonl").read_text() for name in ("as before", "divided")]
    assert answers[0] == answers[1]
    one, other = (weights(tmp_path / name, 4) for name in ("as before", "divided"))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_each_round_reads_its_prompts_in_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that end within an epoch would all train on the same prompts otherwise; a fit done again does the same."""
    orders: list[list[str]] = []

    class Watched(players.PreferenceTrainer):
        def train(self, *arguments: Any, **options: Any) -> Any:
            batches = (inputs["batch"] for inputs in self.get_train_dataloader())
            orders.append([row.source for batch in batches for row in batch.rows])
            return super().train(*arguments, **options)

    monkeypatch.setattr(players, "PreferenceTrainer", Watched)
    for folder in ("one", "again"):
        run("inpo", tmp_path / folder, "schedule.rounds=2")
    assert orders[:2] == orders[2:] and len(orders[0]) > 8
    common = set(orders[0]) & set(orders[1])
    first, second = ([source for source in order if source in common] for order in orders[:2])
    assert first != second


def test_what_picks_the_best_model_decides_it(tmp_path: Path) -> None:
    best = ("training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.save_strategy=steps")
    best += ("training.metric_for_best_model=win_rate_vs_ref", "schedule.rounds=1")
    run("mnpo", tmp_path, *best, "training.eval_steps=1", "training.save_steps=1")
    with pytest.raises(UserError, match=r"round-1/model: made by other values of training\.eval_steps \(1 then, 2 now"):
        run("mnpo", tmp_path, *best, "training.eval_steps=2", "training.save_steps=2")


def test_a_best_model_by_a_figure_that_nobody_finds_is_refused(tmp_path: Path) -> None:
    """Prompts alone have no loss, which is what transformers looks for."""
    best = ("training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.save_strategy=steps")
    with pytest.raises(UserError, match=r"metric_for_best_model: expected one of kl_to_ref, win_rate.*, got 'loss'"):
        run("mnpo", tmp_path, "schedule.rounds=1", *best, "training.eval_steps=1", "training.save_steps=1")


def test_a_crash_at_the_oracle_keeps_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inpo"

    def crash(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("the oracle is gone")

    with monkeypatch.context() as patch:
        patch.setattr(players, "compare_answers", crash)
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

    class Stop(players.RunFiles):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_save(args, state, control, **kwargs)
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(players, "RunFiles", Stop)
        with pytest.raises(KeyboardInterrupt):
            run("inpo", tmp_path / "cut", *settings)
    shutil.rmtree(tmp_path / "cut" / "round-1" / "checkpoint-3")
    run("inpo", tmp_path / "cut", *settings)
    assert same(weights(tmp_path / "cut", 1), weights(tmp_path / "whole", 1))


def test_two_fits_a_round(tmp_path: Path) -> None:
    """ONPO: fit 1 starts from the last round's fit 1, fit 2 from this round's; both read the same answers."""
    onpo = ("method={name: onpo, eta: 10}", "schedule.rounds=2", "average={decay: 1.0}")
    run("inpo", tmp_path, *onpo)
    paths = [tmp_path / f"round-{number}" / part for number in (1, 2) for part in ("fit-1/model", "model")]
    models = [load_file(path / "model.safetensors") for path in paths]
    assert not any(same(left, right) for left, right in itertools.combinations(models, 2))
    made_by = [json.loads(path.with_name("model.manifest.json").read_text()) for path in paths]
    origins = [manifest["made_by"]["policy"] for manifest in made_by]
    assert origins[1] == made_by[0]["fingerprint"] and origins[3] == made_by[2]["fingerprint"]
    assert origins[2] == made_by[0]["fingerprint"] != made_by[1]["fingerprint"]
    assert made_by[0]["made_by"]["preferences"] == made_by[1]["made_by"]["preferences"]
    sampled = json.loads((tmp_path / "round-2" / "answers.jsonl.manifest.json").read_text())["made_by"]["policy"]
    assert sampled == made_by[1]["fingerprint"]
    # The average of the start and both rounds' models, in weights.
    recipe = load_recipe(ROOT / "recipes/inpo/tiny.yaml", [*SMALL, f"output_dir={tmp_path}", *onpo]).recipe
    start = load_policy(recipe.policy, AutoTokenizer.from_pretrained(tmp_path / "final"), seed=0).state_dict()
    average = load_file(tmp_path / "average" / "model.safetensors")
    for name, value in average.items():
        torch.testing.assert_close(value, (start[name] + models[1][name] + models[3][name]) / 3)


def test_the_average_of_an_adapter_begins_where_it_began(tmp_path: Path) -> None:
    """At a rate of nearly nothing all rounds are the start, and so is their average."""
    still = ("training.learning_rate=1e-12", "average.decay=1", "schedule.rounds=2", "data.eval_fraction=0")
    run("mnpo", tmp_path, "policy.lora={rank: 2, alpha: 4}", *still)
    average, last = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("average", "final"))
    for name, value in last.items():
        torch.testing.assert_close(average[name], value, rtol=0, atol=1e-7)


def test_changed_content_is_another_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and rules are named in the recipe; what stands there counts."""
    monkeypatch.syspath_prepend(tmp_path)
    rule, prompts = tmp_path / "taste.py", tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"Say {number}"}) + "\n" for number in range(24)]
    rule.write_text("def taste(prompt, left, right):\n    return 0.5 + 0.4 * ((left > right) - (left < right))\n")
    prompts.write_text("".join(lines))
    changes = ("schedule.rounds=1", "data.eval_fraction=0", "oracle.rule=taste:taste", f"data.prompts.path={prompts}")
    run("inpo", tmp_path / "run", *changes)
    run("inpo", tmp_path / "run", *changes)
    prompts.write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"answers\.jsonl: made by other values of content of the prompts"):
        run("inpo", tmp_path / "run", *changes)
    prompts.write_text("".join(lines))
    rule.write_text(rule.read_text().replace("0.4", "0.3"))
    with pytest.raises(UserError, match=r"preferences\.jsonl: made by other values of content of the oracle"):
        run("inpo", tmp_path / "run", *changes)


def test_a_stage_needs_only_what_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's key need not be where answers are drawn, nor the engine where they are compared or trained on."""
    settings = [*SMALL, f"output_dir={tmp_path}", "schedule.rounds=1", "data.eval_fraction=0"]
    recipe = load_recipe(ROOT / "recipes/mnpo/tiny.yaml", settings).recipe

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("not needed")

    for stage, absent in (("rollout", ["oracle"]), ("judge", ["engine"]), ("train", ["oracle", "engine"])):
        with monkeypatch.context() as patch:
            for what in absent:
                patch.setattr(f"alignment.iterative.build_{what}", fail)
            loop.run_stage(recipe, stage)
    assert (tmp_path / "final").exists()


def test_options_of_no_optimizer_are_named_before_anything_is_sampled(tmp_path: Path) -> None:
    """But not by a stage that does not train: it may run where the optimizer's package is not."""
    settings = [*SMALL, f"output_dir={tmp_path}", "training.optim_args=foo"]
    with pytest.raises(UserError, match=r"training\.optim, training\.optim_args: expected what makes an optimizer"):
        run("mnpo", tmp_path, *settings)
    assert not (tmp_path / "recipe.yaml").exists() and not (tmp_path / "round-1").exists()
    loop.run_stage(load_recipe(ROOT / "recipes/mnpo/tiny.yaml", settings).recipe, "rollout")
    assert (tmp_path / "round-1" / "answers.jsonl").exists()


def test_a_stage_that_cannot_begin_claims_no_folder(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes/mnpo/tiny.yaml", [*SMALL, f"output_dir={tmp_path}"]).recipe
    with pytest.raises(UserError, match="run `alignment rollout` first"):
        loop.run_stage(recipe, "judge")
    assert not (tmp_path / "recipe.yaml").exists()
    with pytest.raises(UserError, match=r"expected last or nothing where rounds continue.* got 'elsewhere'"):
        run("mnpo", tmp_path, "training.resume_from_checkpoint=elsewhere")


PLAYERS = [
    "method={name: mnpo, eta: 0.1, ref_weight: 0.25, opponents: heterogeneous}",
    "oracle=null",
    "schedule.rounds=2",
    "data.eval_fraction=0",
]


def players_of(left: str, right: str) -> str:
    return (
        f"players={{a: {{oracle: {left}, method: {{player_weights: {{b: 0.75}}}}}}, "
        f"b: {{oracle: {right}, method: {{player_weights: {{a: 0.75}}}}}}}}"
    )


SHORTER, LONGER = "{kind: rule, rule: shorter}", "{kind: rule, rule: 'tests.test_iterative:longer'}"


def longer(prompt: str, left: str, right: str) -> float:
    return shorter(prompt, right, left)


@pytest.mark.parametrize("lora", [(), ("policy.lora={rank: 2, alpha: 4}",)], ids=["all weights", "lora"])
def test_players_with_one_oracle_stay_the_same(lora: tuple[str, ...], tmp_path: Path) -> None:
    """Invariant 61 on text: identical oracles and starts keep the players identical, to the bit."""
    run("mnpo", tmp_path, *PLAYERS, players_of(SHORTER, SHORTER), *lora)
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    first, second = (load_file(tmp_path / player / "final" / name) for player in ("a", "b"))
    assert same(first, second)
    assert not same(first, load_file(tmp_path / "a" / "round-1" / "model" / name))


def test_players_with_one_oracle_equal_a_single_one(tmp_path: Path) -> None:
    """Invariant 61: while both are the same, the other player is the policy at the start of the round."""
    run("mnpo", tmp_path / "two", *PLAYERS, players_of(SHORTER, SHORTER))
    alone = "method={name: mnpo, eta: 0.1, ref_weight: 0.25, history_weights: [0.75]}"
    run("mnpo", tmp_path / "one", alone, *PLAYERS[2:])
    two, one = (load_file(tmp_path / path / "model.safetensors") for path in ("two/a/final", "one/final"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)


def test_players_share_whoever_judges_held_out_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, built = iterative.build_oracle, []
    monkeypatch.setattr(iterative, "build_oracle", lambda spec, *rest: built.append(spec["rule"]) or build(spec, *rest))
    evaluation = "evaluation={oracle: {kind: rule, rule: shorter, flip: 0.1}, max_new_tokens: 4}"
    overrides = (*PLAYERS[:2], "schedule.rounds=1", evaluation)
    run("mnpo", tmp_path, *overrides, players_of(LONGER, LONGER))
    assert sorted(built) == ["shorter", *["tests.test_iterative:longer"] * 2]


def test_players_with_two_oracles_part(tmp_path: Path) -> None:
    run("mnpo", tmp_path, *PLAYERS, players_of(SHORTER, LONGER))
    first, second = (load_file(tmp_path / player / "final" / "model.safetensors") for player in ("a", "b"))
    assert not same(first, second)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*PLAYERS, players_of(SHORTER, SHORTER), f"oracle={SHORTER}"), "expected oracle or players, got both"),
        (
            (*PLAYERS, players_of(SHORTER, SHORTER).replace("b: 0.75", "c: 0.75")),
            "reads the player 'c', found besides its own: b",
        ),
        ((*PLAYERS, players_of(SHORTER, "{kind: rule, rule: shortr}")), r"players\.b: oracle\.rule"),
        (
            (*PLAYERS, players_of(SHORTER, SHORTER).replace("player_weights: {a", "player_weihgts: {a")),
            "unknown key 'players.b.method.player_weihgts'; did you mean 'players.b.method.player_weights'",
        ),
        ((*PLAYERS, f"players={{a: {{oracle: {SHORTER}}}}}"), "expected at least two players"),
        ((*PLAYERS, players_of(SHORTER, SHORTER).replace("a:", "../a:")), r"nothing else of a run has, got '\.\./a'"),
        ((*PLAYERS, players_of(SHORTER, SHORTER).replace("a:", "ref:")), "nothing else of a run has, got 'ref'"),
    ],
)
def test_mistaken_players_are_named(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run("mnpo", tmp_path, *overrides)


def test_annotate_stores_what_training_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the training of the round computes no log-prob of a frozen policy."""
    monkeypatch.setenv("ALIGNMENT_CACHE", str(tmp_path / "cache"))
    overrides = [*SMALL, f"output_dir={tmp_path / 'run'}", "anchors.store=true", "schedule.rounds=1"]
    recipe = load_recipe(ROOT / "recipes/inpo/tiny.yaml", overrides).recipe
    loop.run_stage(recipe, "rollout")
    with pytest.raises(UserError, match="expected the comparisons of round 1, found none; run `alignment judge` first"):
        loop.annotate(recipe)
    loop.run_stage(recipe, "judge")
    loop.annotate(recipe)
    assert list((tmp_path / "cache" / "logps").glob("*")) and not (tmp_path / "run" / "round-1" / "model").exists()

    def fail(*arguments: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("alignment.store._score", fail)
    loop.run_stage(recipe, "train")
    assert (tmp_path / "run" / "round-1" / "model").exists()


def test_annotate_leaves_a_finished_run_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stores log-probs, and neither asks nor answers anything, nor begins the run's files anew."""
    monkeypatch.setenv("ALIGNMENT_CACHE", str(tmp_path / "cache"))
    evaluation = "evaluation={oracle: {kind: rule, rule: shorter}, max_new_tokens: 4}"
    overrides = [*SMALL[:4], f"output_dir={tmp_path / 'run'}", "anchors.store=true", "training.save_strategy=no"]
    recipe = load_recipe(ROOT / "recipes/dpo/tiny.yaml", [*overrides, evaluation]).recipe
    loop.run(recipe)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    monkeypatch.setattr(loop, "build_oracle", lambda *arguments: pytest.fail("somebody was asked"))
    loop.annotate(recipe)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


def test_no_model_of_a_fit_stays_beside_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether log-probs are stored or a policy is trained; nothing is collected here that does not ask for it."""
    monkeypatch.setenv("ALIGNMENT_CACHE", str(tmp_path / "cache"))
    load, make = RoundModels.load, players.Player._make_trainer
    loaded: list[weakref.ref[Any]] = []
    left: list[int] = []

    def watch(self: RoundModels, policy: Artefact) -> Any:
        model = load(self, policy)
        loaded.append(weakref.ref(model))
        return model

    def count(self: players.Player, number: int, index: int) -> Any:
        left.append(sum(model() is not None for model in loaded))
        return make(self, number, index)

    monkeypatch.setattr(RoundModels, "load", watch)
    monkeypatch.setattr(players.Player, "_make_trainer", count)
    overrides = (*SMALL, *PLAYERS, players_of(SHORTER, LONGER), "anchors.store=true", f"output_dir={tmp_path / 'run'}")
    recipe = load_recipe(ROOT / "recipes/mnpo/tiny.yaml", overrides).recipe
    gc.disable()
    try:
        for stage in ("rollout", "judge", "annotate", "train"):
            loop.annotate(recipe) if stage == "annotate" else loop.run_stage(recipe, stage)
    finally:
        gc.enable()
    assert left == [0, 0, 0, 0] and len(loaded) > 4


def test_annotate_needs_a_store(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes/inpo/tiny.yaml", [*SMALL, f"output_dir={tmp_path}"]).recipe
    with pytest.raises(UserError, match=r"expected anchors\.store: true"):
        loop.annotate(recipe)


def test_stages_run_one_by_one(finished: Path, tmp_path: Path) -> None:
    """rollout, judge and train as calls of their own make the rounds that one call makes."""
    recipe = load_recipe(ROOT / "recipes/mnpo/tiny.yaml", [*SMALL, f"output_dir={tmp_path}"]).recipe
    with pytest.raises(UserError, match=r"expected the answers of round 1, found none; run `alignment rollout`"):
        loop.run_stage(recipe, "judge")
    loop.run_stage(recipe, "rollout")
    assert not (tmp_path / "round-1" / "preferences.jsonl").exists()
    loop.run_stage(recipe, "judge")
    assert not (tmp_path / "round-1" / "model").exists()
    loop.run_stage(recipe, "train")
    assert same(weights(tmp_path, 1), weights(finished, 1)) and not (tmp_path / "round-2").exists()
    loop.run_stage(recipe, "train")
    loop.run_stage(recipe, "rollout")
    loop.run_stage(recipe, "train")
    assert same(load_file(tmp_path / "final" / "model.safetensors"), weights(finished, 3))
    before = sorted(tmp_path.rglob("*"))
    loop.run_stage(recipe, "rollout")
    assert sorted(tmp_path.rglob("*")) == before


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
