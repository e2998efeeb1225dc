"""`alignment crossplay`: each pair is judged once, nothing is asked twice, and wrong files are named."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import main
from alignment.crossplay import CrossPlay, Outputs, crossplay, read_oracle, read_policies
from alignment.errors import UserError
from tests.oracles.server import Reply, prefers_longer, says, serve

PROMPTS = [f"prompt {n}" for n in range(12)]
# What `counting` was asked, and after how many questions it breaks.
ASKED: list[tuple[str, str, str]] = []
LIMIT: list[int] = []


def counting(prompt: str, left: str, right: str) -> float:
    """Prefers by the alphabet, and counts."""
    if LIMIT and len(ASKED) >= LIMIT[0]:
        raise UserError("the oracle fell asleep")
    ASKED.append((prompt, left, right))
    return 0.5 if left == right else float(left < right)


SPEC = {"kind": "rule", "rule": f"{__name__}:counting", "ledger": True}


@pytest.fixture(autouse=True)
def _forget() -> None:
    ASKED.clear()
    LIMIT.clear()


def outputs(folder: Path, name: str, answers: list[str], prompts: list[str] = PROMPTS) -> str:
    path = folder / f"{name}.json"
    rows = [{"instruction": text, "output": out, "generator": name} for text, out in zip(prompts, answers, strict=True)]
    path.write_text(json.dumps(rows))
    return f"{name}={path}"


def play(folder: Path, *policies: str, spec: dict[str, Any] = SPEC) -> CrossPlay:
    return crossplay(read_policies(policies), spec, folder, device="cpu", progress=lambda name, done, total: None)


def standings(result: CrossPlay) -> dict[str, float]:
    return {item.name: item.ranked.score.mean for item in result.tournament.standings}


def test_a_further_policy_asks_only_for_its_own_pairs(tmp_path: Path) -> None:
    """12 prompts, 4 of which two of the policies answer alike: 8 pairs x 2 orders; then nothing; then only c's."""
    a = outputs(tmp_path, "a", ["ant"] * 12)
    b = outputs(tmp_path, "b", ["ant"] * 4 + ["bee"] * 8)
    c = outputs(tmp_path, "c", [f"cat {n}" for n in range(12)])
    folder = tmp_path / "played"
    first = play(folder, a, b)
    assert first.num_new == 8 and len(ASKED) == 16 and first.pairs[0].num_same == 4
    assert standings(first) == pytest.approx({"a": (8 + 2) / 12, "b": 2 / 12})
    again = play(folder, b, a)
    assert again.num_new == 0 and len(ASKED) == 16 and standings(again) == standings(first)
    third = play(folder, c, a, b)
    # The oracle keeps verdicts by their texts: "ant" against "cat n" is asked once where a and b said the same.
    assert third.num_new == 24 and len(ASKED) == 16 + 2 * (12 + 8)
    assert all("cat" in left + right for _, left, right in ASKED[16:])
    assert standings(third)["a"] == pytest.approx((10 / 12 + 1) / 2)
    saved = json.loads((folder / "crossplay.json").read_text())
    assert saved["verdicts"][0] == {
        "names": ["a", "b"],
        "wins": 8,
        "draws": 4,
        "losses": 0,
        "same_text": 4,
        "unparsable": 0,
    }
    assert json.loads((folder / "oracle.json").read_text())[0]["calls"] == len(ASKED)


def test_policies_that_say_the_same_are_even_and_nobody_is_asked(tmp_path: Path) -> None:
    """That 12 answers are the same does not show that the next one is. They are read as if one verdict of 12 had been a
    win or a loss: with t = 2.201 of 11 degrees of freedom and c = (t / 12)^2 the rate is 1/2 +- sqrt(c / (1 + c)) / 2.
    """
    a, b = outputs(tmp_path, "a", ["same"] * 12), outputs(tmp_path, "b", ["same"] * 12)
    result = play(tmp_path / "played", a, b)
    assert standings(result) == {"a": 0.5, "b": 0.5} and not ASKED and result.num_new == 0
    (match,) = result.tournament.matches
    assert (match.win_rate.low, match.win_rate.high, match.p_value) == pytest.approx((0.4098, 0.5902, 1.0), abs=1e-4)


def test_one_prompt_says_nothing_about_others(tmp_path: Path) -> None:
    a, b = outputs(tmp_path, "a", ["ant"], PROMPTS[:1]), outputs(tmp_path, "b", ["bee"], PROMPTS[:1])
    # The alphabet would make the strengths infinite; a slight preference does not.
    result = play(tmp_path / "played", a, b, spec={"kind": "rule", "rule": "shorter", "flip": 0.3})
    first = result.tournament.standings[0]
    assert (first.ranked.score.low, first.ranked.score.high) == (0.0, 1.0)
    assert first.elo is not None and (first.elo.low, first.elo.high) == (-math.inf, math.inf)
    assert json.loads((tmp_path / "played" / "crossplay.json").read_text())["standings"][0]["elo"]["low"] is None


def test_a_reply_without_a_verdict_is_a_counted_tie(tmp_path: Path) -> None:
    """One of 34, each asked in one order; counted in a later call as well."""
    prompts = [f"Question {n}?" for n in range(34)]
    a, b = outputs(tmp_path, "a", ["short"] * 34, prompts), outputs(tmp_path, "b", ["rather long"] * 34, prompts)

    def script(body: dict[str, Any]) -> Reply:
        nonsense = "Question 7?" in body["messages"][0]["content"]
        return says("both have merits") if nonsense else prefers_longer(body)

    with serve(script) as server:
        spec = {"kind": "judge", "model": "m", "base_url": server.url, "symmetrize": False}
        result = play(tmp_path / "played", a, b, spec=spec)
        again = play(tmp_path / "played", a, b, spec=spec)
        assert len(server.requests) == 34
    assert standings(result) == pytest.approx({"a": 0.5 / 34, "b": 33.5 / 34})
    for one in (result, again):
        assert one.pairs[0].num_unparsable == 1
        assert "1 replies of the judge had no verdict and count as ties" in one.lines()


def test_verdicts_are_alpaca_evals_rows(tmp_path: Path) -> None:
    """2 means that output_2 wins; an identical text is 1.5."""
    a, b = outputs(tmp_path, "a", ["x"] * 11 + ["same"]), outputs(tmp_path, "b", ["w"] * 11 + ["same"])
    play(tmp_path / "played", a, b)
    rows = [json.loads(line) for line in (tmp_path / "played" / "pairs" / "a__b.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "instruction": "prompt 0",
        "output_1": "x",
        "output_2": "w",
        "generator_1": "a",
        "generator_2": "b",
        "annotator": f"rule {__name__}:counting",
        "preference": 2.0,
    }
    assert rows[-1]["preference"] == 1.5


def test_a_broken_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The oracle fails after 150 of 2 x 100 questions: whole batches are kept, and are not asked again."""
    prompts = [f"prompt {n}" for n in range(100)]
    a = outputs(tmp_path, "a", [f"a {n}" for n in range(100)], prompts)
    b = outputs(tmp_path, "b", [f"b {n}" for n in range(100)], prompts)
    LIMIT.append(150)
    with pytest.raises(UserError, match="fell asleep"):
        play(tmp_path / "played", a, b)
    LIMIT.clear()
    before = set(ASKED[:128])
    ASKED.clear()
    play(tmp_path / "played", a, b)
    assert len(ASKED) == 200 - 128 and not before & set(ASKED)


def test_other_answers_or_another_oracle_are_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    a, b = outputs(tmp_path, "a", ["ant"] * 12), outputs(tmp_path, "b", ["bee"] * 12)
    play(tmp_path / "played", a, b)
    ASKED.clear()
    with pytest.raises(UserError, match=r"made by other values of oracle\.rule"):
        play(tmp_path / "played", a, b, spec={"kind": "rule", "rule": "shorter"})
    outputs(tmp_path, "b", ["bat"] * 12)
    with pytest.raises(UserError, match=r"made by other values of answers\.b"):
        play(tmp_path / "played", outputs(tmp_path, "aa", ["x"] * 12), a, b)
    assert not ASKED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[:-2],
            r"b\.json: expected the 12 prompts of .*a\.json, found 2 of its prompts missing \('pr",
        ),
        (lambda rows: [*rows, {"instruction": "new", "output": "x"}], r"found 1 others \('new'\)"),
        (
            lambda rows: [*rows, rows[0]],
            r"b\.json:13: expected an instruction once, found 'prompt 0' also at b\.json:1; remove one",
        ),
        (
            lambda rows: [{"instruction": "prompt 0"}, *rows[1:]],
            r"b\.json:1: expected a column 'output', found 'instruction'",
        ),
        (lambda rows: [{"output": "x"}, *rows[1:]], r"b\.json:1: expected a column 'instruction', found 'output'"),
        (
            lambda rows: [{"instruction": "prompt 0", "output": None}, *rows[1:]],
            r"b\.json:1: expected text in 'output', found null",
        ),
        (lambda rows: [], r"b\.json: expected rows, found none; the file is empty"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    a, b = outputs(tmp_path, "a", ["x"] * 12), outputs(tmp_path, "b", ["y"] * 12)
    path = tmp_path / "b.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        read_policies([a, b])


def test_names_and_oracles_are_checked(tmp_path: Path) -> None:
    a = outputs(tmp_path, "a", ["x"] * 12)
    for arguments, message in (
        ([a], "two policies at least, with different names, got 1"),
        ([a, a], "got 'a' twice"),
        (["a.json"], "expected NAME=model_outputs.json"),
        (["../a=x.json"], "expected NAME=model_outputs.json"),
        ([a, "b__c=x.json"], "dashes and single underscores, got 'b__c=x.json'"),
        ([a, f"b={tmp_path / 'none.json'}"], "expected a file, found none; check the path"),
    ):
        with pytest.raises(UserError, match=message):
            read_policies(arguments)
    with pytest.raises(UserError, match="one YAML file, or the keys of an oracle, got nothing; give --oracle judge"):
        read_oracle([])
    (tmp_path / "o.yaml").write_text("oracle: {kind: rule, rule: shorter}\n")
    assert read_oracle([str(tmp_path / "o.yaml"), "flip=0.1"]) == {
        "ledger": True,
        "kind": "rule",
        "rule": "shorter",
        "flip": 0.1,
    }
    assert read_oracle(["kind=rule", "rule=shorter", "flip=null"]) == {
        "ledger": True,
        "kind": "rule",
        "rule": "shorter",
    }
    b = outputs(tmp_path, "b", ["y"] * 12)
    panel = {"kind": "panel", "members": {"one": {"kind": "rule", "rule": "shorter"}}}
    with pytest.raises(UserError, match="expected one oracle, got a panel"):
        play(tmp_path / "played", a, b, spec=panel)


def test_verdicts_on_others_are_not_read(tmp_path: Path) -> None:
    """Names that are not read from the command line may share a file: a with b__c, and a__b with c."""
    policies = [
        Outputs(name=name, path=tmp_path, answers=dict.fromkeys(PROMPTS, name)) for name in ("a", "a__b", "b__c", "c")
    ]
    with pytest.raises(UserError, match=r"a__b__c\.jsonl: expected verdicts on a and b__c, found a__b and c"):
        crossplay(policies, SPEC, tmp_path / "played", device="cpu", progress=lambda name, done, total: None)


def test_the_command_prints_standings_and_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three policies that mostly say one word each: a circle."""
    words = ["stone", "paper", "scissors"]
    policies = [
        outputs(tmp_path, word, [f"{word} {n}" for n in range(40)], [f"p{n}" for n in range(40)]) for word in words
    ]
    command = ["crossplay", *policies, "--oracle", "kind=rule", "--oracle", "rule=paper_scissors_stone"]
    for extra in ((), ("--json",)):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--output", str(tmp_path / "played"), *extra])
        assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "120 new pairs of answers judged" in out and "A Nash method can help" in out
    assert "Who beats whom" in (tmp_path / "played" / "report.html").read_text()
    tree = json.loads(out[out.index("{") :])
    assert tree["num_new"] == 0 and [item["weight"] for item in tree["standings"]] == pytest.approx([1 / 3] * 3)
    assert all(item["exploitability"]["mean"] == 0.5 for item in tree["standings"])
