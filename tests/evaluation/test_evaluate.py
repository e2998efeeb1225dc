"""``alignment evaluate``: numbers worked out by hand, bad input with a defined end, nothing that is paid for twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from alignment import answering
from alignment.cli import main
from alignment.config.evaluation import load_evaluation_recipe
from alignment.errors import UserError
from alignment.evaluate import Evaluated, evaluate
from alignment.evaluation import scoring
from alignment.evaluation.intervals import holm, mean_interval
from alignment.evaluation.manifests import compare_manifests, read_manifest
from alignment.evaluation.matches import Match, cell, paired_comparisons
from alignment.tiny import tiny_model, tiny_tokenizer
from tests.generation.http_stand_in import ScriptedServer, serving
from tests.oracles.server import Reply, answers_shown, says, serve

ROOT = Path(__file__).parents[2]
PROMPTS = ("Why?", "How?", "Who?", "When?")
# By the matrix below "win" beats "base", "tie" does not, "loss" loses.
ANSWERS = {
    "base": ("base", "base", "base", "base"),
    "mine": ("win", "win", "tie", "base"),
    "poor": ("win", "loss", "loss", "loss"),
    "same": ("base", "base", "base", "base"),
}
MATRIX = {
    "responses": ["win", "tie", "base", "loss"],
    "preferences": [[0.5, 1.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.0, 0.5]],
}


def never(prompt: str, left: str, right: str) -> float:
    """A rule that nobody may ask."""
    raise AssertionError("asked about answers that are the same")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_outputs(path: Path, prompts: Sequence[str], answers: Sequence[str]) -> Path:
    return write_rows(
        path, [{"instruction": prompt, "output": text} for prompt, text in zip(prompts, answers, strict=True)]
    )


def files(folder: Path) -> dict[str, Any]:
    """A recipe of files: four prompts with categories, four policies, the matrix."""
    categories = ("short", "short", "long", "long")
    rows = [{"instruction": prompt, "kind": kind} for prompt, kind in zip(PROMPTS, categories, strict=True)]
    write_rows(folder / "prompts.jsonl", rows)
    (folder / "matrix.json").write_text(json.dumps(MATRIX))
    return {
        "policies": {
            name: {"outputs": str(write_outputs(folder / f"{name}.jsonl", PROMPTS, answers))}
            for name, answers in ANSWERS.items()
        },
        "opponents": ["base"],
        "prompts": {"path": str(folder / "prompts.jsonl"), "category": "kind"},
        "oracle": {"kind": "matrix", "path": str(folder / "matrix.json")},
        "output_dir": str(folder / "out"),
    }


def run(tree: Mapping[str, Any], *overrides: str) -> Evaluated:
    """Evaluate by a recipe that is written beside its output_dir."""
    path = Path(tree["output_dir"]).with_name("evaluation.yaml")
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False))
    recipe = load_evaluation_recipe(path, overrides).recipe
    return evaluate(recipe, announce=lambda line: None, progress=lambda *_: None)


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return files(tmp_path)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """That recipe's evaluation."""
    return run(files(tmp_path_factory.mktemp("files")))


def test_numbers_worked_out_by_hand(found: Evaluated) -> None:
    """mine: 1, 1, 1/2, 1/2 against base, so 3/4; poor: 1, 0, 0, 0.

    Each of mine is 1/4 from the mean, so the mean has the variance 4/16/16 = 1/64, a share d = (1/64)/(3/16) = 1/12 of
    the largest. With t = 3.1824 (3 degrees of freedom) k = t^2 d = .8440, and the ends (m + k/2 -+ sqrt(k m (1 - m) +
    k^2/4)) / (1 + k) are .3211 and .9501.
    """
    mine, poor, same = found.cells
    assert (mine.policy, poor.policy, same.policy) == ("mine", "poor", "same")
    assert mine.win_rate.mean == mine.discrete_win_rate.mean == 0.75
    assert (mine.win_rate.low, mine.win_rate.high) == pytest.approx((0.3211, 0.9501), abs=2e-4)
    assert (mine.n_wins, mine.n_wins_base, mine.n_draws, mine.n_identical) == (2, 0, 2, 1)
    assert (poor.win_rate.mean, poor.n_wins, poor.n_wins_base, poor.n_draws) == (0.25, 1, 3, 0)
    assert (mine.length.mean, mine.opponent_length.mean) == ((3 + 3 + 3 + 4) / 4, 4.0)
    assert {name: rate.mean for name, rate in mine.categories.items()} == {"short": 1.0, "long": 0.5}
    # Four ties are read as if one verdict of four had been a win or a loss: k = t^2 / 16 = .6330.
    assert same.win_rate.mean == 0.5
    assert (same.win_rate.low, same.win_rate.high) == pytest.approx((0.1887, 0.8113), abs=1e-4)
    # mine - poor: 0, 1, 1/2, 1/2.
    first = found.comparisons[0]
    assert (first.first, first.second, first.difference.mean) == ("mine", "poor", 0.5)
    assert first.difference.low < 0.5 < first.difference.high and first.p_value >= first.difference.p_value


def test_the_files_are_those_of_alpaca_eval(found: Evaluated) -> None:
    """`alignment score` finds the same figures in the annotations; results.json is what was returned."""
    scored = scoring.score("alpaca_eval1", found.folder / "annotations" / "mine-vs-base.json").summary
    mine = found.cells[0].to_json()
    shared = ("win_rate", "low", "high", "discrete_win_rate", "n_wins", "n_wins_base", "n_draws")
    assert {key: mine[key] for key in shared} == pytest.approx({key: scored[key] for key in shared})
    outputs = json.loads((found.folder / "outputs" / "mine.json").read_text())
    assert outputs[0] == {"instruction": "Why?", "output": "win", "generator": "mine"} and len(outputs) == 4
    results = json.loads((found.folder / "results.json").read_text())
    assert results == json.loads(json.dumps(found.to_json()))
    assert "mine against base" in (found.folder / "report.html").read_text()


def test_an_opponent_may_meet_others(tree: dict[str, Any]) -> None:
    """Both ways round the rates add up to one."""
    found = run({**tree, "opponents": ["base", "mine"]})
    rates = {(one.policy, one.opponent): one.win_rate.mean for one in found.cells}
    assert len(rates) == 6 and rates["mine", "base"] + rates["base", "mine"] == 1.0
    assert {one.opponent for one in found.comparisons} == {"base", "mine"}


def test_a_policy_that_is_its_opponent_has_50_and_nobody_is_asked(tree: dict[str, Any]) -> None:
    policies = {name: tree["policies"][name] for name in ("base", "same")}
    found = run({**tree, "policies": policies, "oracle": {"kind": "rule", "rule": f"{__name__}:never"}})
    assert found.cells[0].to_json()["win_rate"] == 50.0
    assert found.cells[0].n_identical == 4
    assert any("nobody was asked" in note for note in found.notes)


def test_one_prompt_says_nothing_about_others(tree: dict[str, Any]) -> None:
    found = run(tree, "prompts.limit=1")
    rate = found.cells[0].win_rate
    assert (rate.mean, rate.low, rate.high, rate.num_prompts) == (1.0, 0.0, 1.0, 1)
    assert any(note.startswith("one prompt") for note in found.notes)
    assert found.cells[0].length.standard_error is None


def test_a_repeated_prompt_counts_once(tree: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    assert run(tree).cells[0].win_rate.num_prompts == 4


BAD_ANSWERS: dict[str, tuple[Sequence[str], Sequence[Any], str]] = {
    "another set": (
        (*PROMPTS, "Which?"),
        ("a", "b", "c", "d", "e"),
        r"mine\.jsonl:5: expected answers to the prompts of the evaluation, found 1 to others, first to 'Which\?'",
    ),
    "twice": (
        (*PROMPTS, "Why?"),
        ("a", "b", "c", "d", "e"),
        r"mine\.jsonl:5: expected an instruction once, found 'Why",
    ),
    "missing": (PROMPTS[:3], ("a", "b", "c"), r"an answer to each of 4 prompts, found none to 1, first to 'When\?'"),
    "null": (PROMPTS, ("a", None, "c", "d"), r"mine\.jsonl:2: expected text in 'output', found null"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_answers_that_do_not_fit_are_refused(case: str, tree: dict[str, Any], tmp_path: Path) -> None:
    prompts, answers, expected = BAD_ANSWERS[case]
    write_outputs(tmp_path / "mine.jsonl", prompts, answers)
    with pytest.raises(UserError, match=expected):
        run(tree)
    assert not (tmp_path / "out").exists()


BAD_RECIPES = {
    "opponents=[them]": "opponents: expected names among base, mine, poor, same, got 'them'",
    "opponents=[base, base]": "opponents: expected each once",
    "policies.mine={}": "policies.mine: expected one of run, server and outputs, got none",
    "policies.mine.run=here": "policies.mine: expected one of run, server and outputs, got run and outputs",
    "policies.mine={server: {base_url: here, model: m}}": "server.base_url: expected a base_url such as https://host",
    "policies.a/b={outputs: x}": "expected names of letters",
    "sampling={temperature: 1.0, max_new_tokens: 4}": "got it with files of answers only",
    "prompts.set=mt_bench": "judge: expected a value, got none",
    "prompts.set=alpaca_eval": "expected the 805 prompts of alpaca_eval, found 4",
    "prompts.category=colour": "expected a column 'colour'",
    "prompts.lmit=3": "unknown key 'prompts.lmit'; did you mean 'prompts.limit'",
    "oracle.pth=x": "unknown key 'pth'",
    "length_control={difficulty: nowhere.csv}": "cross-validate, found 4",
    "length_control={difficulty: nowhere.csv, c: 1.0}": "nowhere.csv: expected a file, found none",
}


@pytest.mark.parametrize("override", BAD_RECIPES)
def test_mistakes_are_found_before_anybody_is_asked(override: str, tree: dict[str, Any]) -> None:
    with pytest.raises(UserError) as raised:
        run(tree, override)
    assert BAD_RECIPES[override] in str(raised.value)


def test_two_cells_never_share_a_file(tree: dict[str, Any]) -> None:
    """a against b-vs-c, and a-vs-b against c, would both be a-vs-b-vs-c.json."""
    policies = dict(zip(("a", "a-vs-b", "b-vs-c", "c"), tree["policies"].values(), strict=True))
    with pytest.raises(UserError, match=r"found annotations/a-vs-b-vs-c\.json for 'a' against 'b-vs-c' and 'a-vs-b'"):
        run({**tree, "policies": policies, "opponents": ["b-vs-c", "c"]})
    assert not Path(tree["output_dir"]).exists()


def test_no_prompt_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(UserError, match=r"prompts\.jsonl"):
        run(tree)


def test_a_folder_holds_one_evaluation(tree: dict[str, Any], tmp_path: Path) -> None:
    """Again: the same figures, from the ledger. Another seed, other answers: refused by name, nothing is touched."""
    first, again = run(tree), run(tree)
    assert first.to_json() == again.to_json()
    assert read_manifest(first.folder)["cost"][0]["calls"] == 2 * (3 + 4 - 1), "both orders of all that differ, once"
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    with pytest.raises(UserError, match=r"manifest\.json: .* other values of seed \(0 then, 1 now\); set them back"):
        run(tree, "seed=1")
    write_outputs(tmp_path / "poor.jsonl", PROMPTS, ANSWERS["mine"])
    with pytest.raises(UserError, match=r"policies\.poor\.version"):
        run(tree)
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_manifests_differ_in_what_decides(tree: dict[str, Any], tmp_path: Path) -> None:
    """Of two evaluations of the same: nothing. An edited matrix is another judge, whatever its path."""
    manifests = [read_manifest(run(tree, f"output_dir={tmp_path / name}").folder) for name in ("a", "b")]
    assert compare_manifests(*manifests) == {}
    assert manifests[0]["judges"][0]["kind"] == "matrix" and manifests[0]["order"] == "both, averaged"
    assert manifests[0]["prompts"]["num_prompts"] == 4 and "torch" in manifests[0]["versions"]
    changed = {**MATRIX, "preferences": [[0.5, *[0.9] * 3], *([0.1, 0.5, 0.5, 1.0],) * 2, [0.1, 0.0, 0.0, 0.5]]}
    (tmp_path / "matrix.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="other values of judges"):
        run(tree, f"output_dir={tmp_path / 'a'}")


def test_length_control_is_that_of_the_scorer(tree: dict[str, Any], tmp_path: Path) -> None:
    write_rows(
        tmp_path / "difficulty.jsonl", [{"instruction_id": n, "instruction_difficulty": 0.1 * n} for n in range(4)]
    )
    found = run(tree, f"length_control={{difficulty: {tmp_path / 'difficulty.jsonl'}, c: 1.0, bootstrap: 2}}")
    figures = found.cells[0].length_controlled
    options = scoring.Options(
        difficulty=tmp_path / "difficulty.jsonl", instructions=tmp_path / "prompts.jsonl", c=1.0, bootstrap=2
    )
    scored = scoring.score("alpaca_eval2", found.folder / "annotations" / "mine-vs-base.json", options)
    assert figures is not None and figures["variant"] == scored.variant == "noreg"
    assert figures["length_controlled_winrate"] == scored.summary["length_controlled_winrate"]
    assert {"lc_low", "lc_high"} <= figures.keys()
    assert not any("no length-controlled" in note for note in found.notes)


def test_without_difficulties_it_is_left_out_and_said(found: Evaluated) -> None:
    assert found.cells[0].length_controlled is None
    assert found.notes[0].startswith("no length-controlled win rate: it needs the difficulties")


def match(wins_PGK: Any, name: str = "a", **more: Any) -> Match:
    wins_PGK = np.asarray(wins_PGK, dtype=np.float64)
    texts = [["text"] * wins_PGK.shape[1]] * len(wins_PGK)
    return Match(policy=name, opponent="base", wins_PGK=wins_PGK, ours=texts, theirs=texts, **more)


def test_several_answers_to_a_prompt_are_one_cluster() -> None:
    """The interval of prompt means is the cluster-robust one of all answers, not that of independent verdicts."""
    wins_PG = np.random.default_rng(0).integers(0, 2, (20, 1)).repeat(4, axis=1).astype(float)
    found = cell(match(wins_PG[..., None])).win_rate
    clustered = mean_interval(wins_PG.flatten(), np.arange(20).repeat(4).tolist())
    assert (found.mean, found.low, found.high) == pytest.approx((clustered.mean, clustered.low, clustered.high))
    assert found.num_prompts == 20
    naive = mean_interval(wins_PG.flatten())
    assert found.high - found.low > 1.5 * (naive.high - naive.low)


def test_groups_are_the_members_of_a_panel() -> None:
    """Rates 1, 1/2 and 1/4: the mean is 7/12, the worst group the last, and its interval reaches no higher."""
    wins_PGK = [[[1.0, 0.5, 0.0]], [[1.0, 0.5, 0.0]], [[1.0, 0.5, 1.0]], [[1.0, 0.5, 0.0]]]
    found = cell(match(wins_PGK, members=["x", "y", "z"]))
    assert found.win_rate.mean == pytest.approx(7 / 12)
    assert {name: rate.mean for name, rate in found.groups.items()} == {"x": 1.0, "y": 0.5, "z": 0.25}
    assert found.worst_group is not None
    name, worst = found.worst_group
    assert (name, worst.mean) == ("z", 0.25) and worst.high <= found.groups["y"].high


def test_turned_round_the_figures_are_mirrored() -> None:
    wins_PGK = np.random.default_rng(1).random((15, 2, 2))
    ours, theirs = cell(match(wins_PGK)), cell(match(1.0 - wins_PGK))
    assert ours.win_rate.mean == pytest.approx(1.0 - theirs.win_rate.mean)
    assert (ours.win_rate.low, ours.n_wins) == pytest.approx((1.0 - theirs.win_rate.high, theirs.n_wins_base))


def test_pairing_is_narrower_where_prompts_decide() -> None:
    """Two policies that agree on what is hard, 1/20 apart on every prompt. The one prompt of 400 on which they might
    have parted leaves t sqrt(1 - .05^2) / 400 = .0049 on either side."""
    hard_P = np.random.default_rng(2).random(400) * 0.9
    (found,) = paired_comparisons([match((hard_P + 0.05)[:, None, None], "a"), match(hard_P[:, None, None], "b")])
    assert found.difference.mean == pytest.approx(0.05)
    assert found.difference.high - found.difference.low == pytest.approx(2 * 0.0049, abs=1e-4)
    assert found.p_value < 1e-6


def test_comparisons_share_an_opponent_and_an_error() -> None:
    """Three policies against x are three pairs, two against y one; p-values are corrected for all four at once."""
    rng = np.random.default_rng(3)
    met = [("a", "x"), ("b", "x"), ("c", "x"), ("a", "y"), ("b", "y")]
    matches = [replace(match(rng.random((9, 1, 1)), name), opponent=opponent) for name, opponent in met]
    found = paired_comparisons(matches)
    pairs = [(one.first, one.second, one.opponent) for one in found]
    assert pairs == [("a", "b", "x"), ("a", "c", "x"), ("b", "c", "x"), ("a", "b", "y")]
    assert [one.p_value for one in found] == pytest.approx(holm([one.difference.p_value for one in found]).tolist())
    assert any(one.p_value > one.difference.p_value for one in found)


def test_a_length_is_that_of_an_answer() -> None:
    """Two answers to each of two prompts: means of 2 and 5 characters, 3.5 in the mean, with the error 1.5."""
    texts = [["a", "abc"], ["abcd", "abcdef"]]
    found = cell(replace(match([[[1.0], [0.0]]] * 2), ours=texts))
    assert (found.length.mean, found.length.standard_error) == (3.5, pytest.approx(1.5))


def test_a_reply_without_a_verdict_is_a_counted_tie(tree: dict[str, Any], tmp_path: Path) -> None:
    """3 % of a judge's replies are nonsense: one of 34, asked in one order."""
    prompts = [f"Question {n}?" for n in range(34)]
    write_rows(tmp_path / "prompts.jsonl", [{"instruction": prompt} for prompt in prompts])
    write_outputs(tmp_path / "base.jsonl", prompts, ["short"] * 34)
    write_outputs(tmp_path / "mine.jsonl", prompts, ["rather longer"] * 34)

    def script(body: dict[str, Any]) -> Reply:
        first, second = answers_shown(body)
        nonsense = "Question 7?" in body["messages"][0]["content"]
        return says("both have merits" if nonsense else "A" if len(first) > len(second) else "B")

    with serve(script) as server:
        judge = {"kind": "judge", "model": "m", "base_url": server.url, "symmetrize": False}
        policies = {name: tree["policies"][name] for name in ("base", "mine")}
        found = run({**tree, "policies": policies, "oracle": judge, "prompts": {"path": tree["prompts"]["path"]}})
        assert len(server.requests) == 34
    (mine,) = found.cells
    expected = mean_interval([1.0] * 33 + [0.5])
    assert (mine.n_wins, mine.n_draws, mine.n_unparsable) == (33, 1, 1)
    assert (mine.win_rate.mean, mine.win_rate.low) == pytest.approx((expected.mean, expected.low))
    assert any("1 replies of the judge had no verdict and count as ties" in note for note in found.notes)
    assert read_manifest(found.folder)["order"] == "one, by a hash of the question"


def test_a_model_on_a_server_answers(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls silent after 35 of 40 questions: the 32 of the whole chunk are kept, and 8 are asked again."""
    prompts = [f"Question {n}?" for n in range(40)]
    write_rows(tmp_path / "prompts.jsonl", [{"instruction": prompt} for prompt in prompts])
    write_outputs(tmp_path / "base.jsonl", prompts, ["a rather long answer"] * 40)

    def chat(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        (message,) = body["messages"]
        text = None if message["content"] == "Question 3?" else message["content"][:10]
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return (500, "broken") if len(server.requests) == 36 else (200, {"choices": [choice]})

    with serving(ScriptedServer(chat)) as server:
        remote = {"base_url": server.base_url, "model": "remote", "api_key_env": "ITS_KEY", "retries": 0}
        policies = {"mine": {"server": {**remote, "concurrency": 1}}, "base": tree["policies"]["base"]}
        recipe = {**tree, "policies": policies, "prompts": {"path": tree["prompts"]["path"]}}
        recipe |= {"sampling": {"temperature": 0.5, "max_new_tokens": 9}, "oracle": {"kind": "rule", "rule": "shorter"}}
        with pytest.raises(UserError, match="expected a key in the environment variable ITS_KEY"):
            run(recipe)
        assert not (tmp_path / "out").exists()
        monkeypatch.setenv("ITS_KEY", "secret")
        with pytest.raises(UserError, match="no answer after 1 tries"):
            run(recipe)
        found = run({**recipe, "policies": {**policies, "mine": {"server": {**remote, "concurrency": 5}}}})
    asked = [(path, body["messages"][0]["content"], body["seed"]) for path, body in server.requests]
    # One more may have been under way when the last one failed.
    assert len(asked) - 8 in (36, 37) and set(asked[:32]).isdisjoint(asked[-8:]) and set(asked[32:-8]) < set(asked[-8:])
    assert [text for _, text, _ in asked[:32]] == prompts[:32] and len({seed for *_, seed in asked}) == 40
    body = server.requests[0][1]
    assert asked[0][0] == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("remote", 0.5, 9)
    assert found.cells[0].win_rate.mean > 0.5 and found.cells[0].n_identical == 0
    assert "mine: 1 of 40 answers have no text" in found.notes
    manifest = (found.folder / "manifest.json").read_text()
    assert read_manifest(found.folder)["policies"]["mine"]["server"]["model"] == "remote" and "secret" not in manifest


# Models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer(["What is this? It is that."], vocab_size=300)
    for seed in range(2):
        model = tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, seed=seed)
        # Random weights are small, and equal seeds would draw equal answers from all but uniform models.
        for parameter in model.parameters():
            parameter.data.mul_(10.0)
        model.save_pretrained(folder / str(seed))
        tokenizer.save_pretrained(folder / str(seed))
    write_rows(folder / "prompts.jsonl", [{"instruction": f"What is {n}?"} for n in range(20)])
    return {"first": folder / "0", "second": folder / "1", "prompts": folder / "prompts.jsonl"}


@pytest.fixture
def sampled(models: Mapping[str, Path], tmp_path: Path) -> dict[str, Any]:
    """A recipe of two models, judged by length."""
    return {
        "policies": {"mine": {"run": str(models["first"])}, "base": {"run": str(models["second"])}},
        "opponents": ["base"],
        "prompts": {"path": str(models["prompts"])},
        "oracle": {"kind": "rule", "rule": "shorter"},
        "sampling": {"temperature": 1.0, "max_new_tokens": 4},
        "output_dir": str(tmp_path / "out"),
    }


@pytest.mark.slow
def test_answers_that_were_sampled_are_kept(
    sampled: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut after one of three chunks: the rest is sampled, and all is as if nothing had happened."""
    answer, asked = answering.answered_chunks, []

    def noted(*arguments: Any, **options: Any) -> Any:
        asked.append(list(options["seeds"]))
        return answer(*arguments, **options)

    def cut(*arguments: Any, **options: Any) -> Any:
        yield next(answer(*arguments, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(answering, "answered_chunks", noted)
        whole = run(sampled, f"output_dir={tmp_path / 'whole'}")
        patch.setattr(answering, "answered_chunks", cut)
        with pytest.raises(KeyboardInterrupt):
            run(sampled)
        (partial,) = (tmp_path / "out" / "outputs").glob("mine.*.partial.jsonl")
        partial.write_text(partial.read_text() + '[["torn')
        patch.setattr(answering, "answered_chunks", noted)
        resumed = run(sampled)
    mine, base, *again = asked
    assert again == [mine[8:], base] and not set(mine) & set(base)
    assert resumed.to_json() == whole.to_json()
    assert not list((tmp_path / "out" / "outputs").glob("*.partial.jsonl"))


@pytest.mark.slow
def test_the_same_weights_give_the_same_answers_and_others_draw_their_own(
    sampled: dict[str, Any], models: Mapping[str, Path], tmp_path: Path
) -> None:
    """Of weights that differ by a millionth the answers would be the same, too, if the random numbers were."""
    shutil.copytree(models["first"], tmp_path / "twin")
    weights = load_file(tmp_path / "twin" / "model.safetensors")
    save_file({name: tensor * (1 + 1e-6) for name, tensor in weights.items()}, tmp_path / "twin" / "model.safetensors")
    sampled["policies"]["base"] = sampled["policies"]["mine"]
    sampled["sampling"]["num_completions"] = 2
    found = run({**sampled, "oracle": {"kind": "rule", "rule": f"{__name__}:never"}})
    assert found.cells[0].n_identical == 40 and found.cells[0].win_rate.mean == 0.5
    sampled["policies"]["mine"] = {"run": str(tmp_path / "twin")}
    found = run({**sampled, "output_dir": str(tmp_path / "other")})
    assert found.cells[0].n_identical < 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_run_again_it_asks_for_nothing_twice(sampled: dict[str, Any], tmp_path: Path) -> None:
    """SIGKILL while the tenth reply is on its way: the nine that were given are not asked for again."""

    def start(recipe: Path) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        arguments = [sys.executable, "-m", "alignment", "evaluate", str(recipe), "--json"]
        return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with serve() as server:
        choose = server.script

        def stuck(body: dict[str, Any]) -> Reply:
            return Reply(body=None) if len(server.requests) > 9 else choose(body)

        judge = {"kind": "judge", "model": "m", "base_url": server.url, "concurrency": 1, "backoff": 60.0}
        recipe = tmp_path / "evaluation.yaml"
        recipe.write_text(yaml.safe_dump({**sampled, "oracle": judge}))
        server.script = stuck
        process = start(recipe)
        deadline = time.monotonic() + 400
        while len(server.requests) < 10 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(server.requests) >= 10
        answers = (tmp_path / "out" / "outputs" / "mine.json").stat().st_mtime_ns
        server.script = choose
        with start(recipe) as again:
            try:
                out, err = again.communicate(timeout=400)
            finally:
                again.kill()
        asked = [json.dumps(body) for body in server.requests]
    results = json.loads(out)
    assert results["cells"][0]["num_prompts"] == 20, err
    assert not set(asked[:9]) & set(asked[10:]) and len(set(asked[10:])) == len(asked[10:])
    assert len(set(asked)) == 2 * (20 - results["cells"][0]["n_identical"])
    assert (tmp_path / "out" / "outputs" / "mine.json").stat().st_mtime_ns == answers
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())


def test_the_command_prints_a_table(tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluation.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(tmp_path / "evaluation.yaml")])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0 and "75.0 [32.1, 95.0]" in out and "mine - poor against base" in out
    assert "note: no length-controlled win rate" in err
