"""The command: what each kind prints of real files and bad ones, which options go together, and what it imports."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import main
from alignment.errors import UserError
from alignment.evaluation.scoring import KINDS, Options, score

ROOT = Path(__file__).parents[2]
FindData = Callable[[str], Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: Any) -> tuple[int, str, str]:
        code = 0
        try:
            main(["score", *map(str, arguments)])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Six instructions, of which the model wins four."""
    rows = [
        {
            "instruction": f"Question {place}?",
            "output_1": "x" * (10 + place),
            "output_2": "y" * (20 - 2 * place),
            "generator_1": "base",
            "generator_2": "ours",
            "annotator": "judge",
            "preference": 2.0 if place < 4 else 1.0,
        }
        for place in range(6)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    return tmp_path / "annotations.json"


@pytest.fixture
def difficulty(tmp_path: Path) -> Path:
    (tmp_path / "difficulty.csv").write_text(
        "instruction_id,instruction_difficulty\n" + "".join(f"{place},{place / 7}\n" for place in range(7))
    )
    return tmp_path / "difficulty.csv"


# Real files


def test_alpaca_eval2_with_its_own_fit(real_data: FindData, run: Run) -> None:
    """The line that the page shows: one JSON object on stdout, what to know on stderr only without --json."""
    code, out, err = run(
        *(
            "alpaca_eval2",
            real_data("alpaca_eval/ae2_phi-2.csv"),
            "--index",
            "positional",
            "--cross-validate",
            "--json",
        ),
        *("--difficulty", real_data("alpaca_eval/instruction_difficulty.csv")),
        *("--regularizer", real_data("alpaca_eval/df_gamed_surrogate.csv")),
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["variant"] == "length_controlled_v1" and found["index"] == "positional"
    assert found["win_rate"] == pytest.approx(2.350209543026152, abs=1e-6)
    assert found["length_controlled_winrate"] == pytest.approx(4.398682270855682, abs=0.2)
    (missing, surrogate) = found["notes"]
    assert missing.startswith("803 of 805 instructions are judged (missing: 131, 209); by position, so that")
    assert "surrogate" in surrogate


@pytest.mark.slow
def test_the_page_shows_what_is_printed(real_data: FindData, run: Run) -> None:
    """Every figure of phi-2 in docs/evaluation.md."""
    page = (ROOT / "docs" / "evaluation.md").read_text()
    names, figures = re.findall(r"^\| (length_controlled_winrate .*) \|\n.*\n\| (.*) \|$", page, re.MULTILINE)[0]
    shown = set(zip(names.split(" | "), figures.split(" | "), strict=True))
    _, out, _ = run(
        *("alpaca_eval2", real_data("alpaca_eval/ae2_phi-2.csv"), "--index", "positional", "--bootstrap", 200),
        *("--difficulty", real_data("alpaca_eval/instruction_difficulty.csv")),
        *("--regularizer", real_data("alpaca_eval/df_gamed_surrogate.csv")),
    )
    assert len(shown) == 9 and shown <= {tuple(line.split()) for line in out.splitlines()}


def test_the_page_names_every_kind_and_option() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    names = {"--" + name.replace("_", "-") for known in KINDS.values() for name in known.reads}
    unsaid = [name for name in (*KINDS, *names) if name not in page]
    assert not unsaid


def test_alpaca_eval2_by_published_weights(real_data: FindData, run: Run) -> None:
    code, out, _ = run(
        *("alpaca_eval2", real_data("alpaca_eval/ae2_claude-2.1.csv"), "--json", "--model", "claude-2.1"),
        *("--weights", real_data("alpaca_eval/leaderboard_and_weights.csv"), "--against", "gpt-3.5-turbo-0301"),
        *("--difficulty", real_data("alpaca_eval/instruction_difficulty.csv")),
    )
    found = json.loads(out)
    assert code == 0 and found["c"] is None
    assert found["length_controlled_winrate"] == pytest.approx(25.251943886133027, abs=1e-5)
    assert found["predicted_winrate"] == pytest.approx(68.3077, abs=5e-5)


@pytest.mark.parametrize(
    ("kind", "name", "line"),
    [
        ("alpaca_eval1", "alpaca_eval/ae1_claude-2.csv", "win_rate           91.36"),
        ("arena_hard_v0.1", "preferences/arena_hard_historical_battles_2136.jsonl.gz", "88.69"),
        (
            "judge_quality",
            "preferences/llmbar_judge_verdicts.jsonl.gz",
            "Adversarial/GPTInst  ChatGPT  Metrics_Reference",
        ),
    ],
)
def test_a_table_by_default(real_data: FindData, run: Run, kind: str, name: str, line: str) -> None:
    code, out, err = run(kind, real_data(name))
    assert (code, err) == (0, "") and out.startswith(f"{kind}, ") and line in out


# Variants and what is given with what


def test_the_variants_by_what_is_given(annotations: Path, difficulty: Path) -> None:
    minimal = score("alpaca_eval2", annotations, Options(c=1.0))
    assert minimal.variant == "minimal" and minimal.summary["w_diff"] == 0.0 and minimal.summary["index"] is None
    noreg = score("alpaca_eval2", annotations, Options(c=1.0, difficulty=difficulty, index="positional"))
    assert noreg.variant == "noreg" and noreg.notes[0].startswith("6 of 7 instructions are judged; by position")
    assert noreg.summary["model"] == "ours" and noreg.summary["win_rate"] == pytest.approx(400 / 6)


def test_instructions_are_numbered_by_their_set(annotations: Path, difficulty: Path, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps([{"instruction": f"Question {place}?"} for place in range(7)]))
    options = {"c": 1.0, "difficulty": difficulty}
    by_number = score("alpaca_eval2", annotations, Options(**options, instructions=tmp_path / "set.json"))
    by_place = score("alpaca_eval2", annotations, Options(**options, index="positional"))
    assert by_number.summary["length_controlled_winrate"] == by_place.summary["length_controlled_winrate"]
    assert by_number.notes[0] == "6 of 7 instructions are judged (missing: 6)"
    with pytest.raises(UserError, match="expected a column 'instruction_id' with --index id"):
        score("alpaca_eval2", annotations, Options(**options))


def test_the_bootstrap_is_that_of_the_seed(annotations: Path) -> None:
    first, again, other = (
        score("alpaca_eval2", annotations, Options(c=1.0, bootstrap=5, seed=seed)).summary["lc_se_bootstrap"]
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("kind", ["alpaca_eval1", "alpaca_eval2"])
def test_a_model_is_chosen_where_there_is_a_choice(kind: str, tmp_path: Path) -> None:
    """In a table as well; where nothing names models, a name would be read by nobody."""
    options = {"alpaca_eval1": {}, "alpaca_eval2": {"c": 1.0}}[kind]
    path = tmp_path / "a.csv"
    path.write_text("generator_2,preference,len_1,len_2\n" + "ours,2,7,9\n" * 3 + "b,1,7,8\n" * 5)
    found = score(kind, path, Options(model="ours", **options)).summary
    assert (found["model"], found["win_rate"], found["n_total"]) == ("ours", 100.0, 3)
    path.write_text("preference,len_1,len_2\n" + "2,7,9\n" * 3)
    with pytest.raises(UserError, match="--model: expected with a column 'generator_2' to choose from, found none"):
        score(kind, path, Options(model="zzz", **options))


def test_the_baseline_against_itself(tmp_path: Path, difficulty: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction_id,preference,len_1,len_2\n0,1.5,7,7\n1,1.5,9,9\n")
    found = score("alpaca_eval2", tmp_path / "a.csv", Options(difficulty=difficulty, bootstrap=5))
    assert found.summary["win_rate"] == found.summary["length_controlled_winrate"] == 50.0
    assert found.summary["w_bias"] == 0.0 and "lc_se_bootstrap" not in found.summary
    assert any("its weights are 0 and the rate 50" in note for note in found.notes)


def test_lengths_that_never_differ_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("preference,len_1,len_2\n" + "2,7,9\n" * 9 + "1,7,9\n")
    found = score("alpaca_eval2", tmp_path / "a.csv", Options(c=100.0))
    assert found.summary["w_len"] == 0.0 and found.summary["length_controlled_winrate"] == pytest.approx(90.0, abs=1.0)
    assert found.notes == ("lengths do not differ from one row to the next: the fit has no length term",)


def test_one_instruction(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("preference,len_1,len_2\n1.75,7,9\n")
    found = score("alpaca_eval2", tmp_path / "a.csv", Options(c=1.0)).summary
    assert found["win_rate"] == 75.0 and found["standard_error"] is None and found["lc_se_upstream"] is None
    with pytest.raises(UserError, match="expected 5 verdicts at least to cross-validate, found 1"):
        score("alpaca_eval2", tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--c", "1", "--cross-validate"],
            "expected one of --weights, --c and --cross-validate, found --c and --cross-v",
        ),
        (["--index", "name"], "--index: expected id or positional, found 'name'"),
        (["--index", "id"], "--index: expected with --difficulty or --regularizer, found neither"),
        (["--c", "0"], "--c: expected a number above 0, found 0.0"),
        (["--against", "b"], "--against: expected with --weights"),
        (["--weights", "w.csv"], "--weights: expected with --difficulty"),
        (["--weights", "w.csv", "--bootstrap", "9"], "--bootstrap: expected with a fit, found --weights"),
        (["--weights", "w.csv", "--regularizer", "r.csv"], "--regularizer: expected with a fit, found --weights"),
        (["--unit", "battle"], "--unit: expected with the kinds arena_hard_v0.1, arena_hard_v2.0, found the kind alp"),
        (["--difficulty", "none.csv"], "none.csv: expected a file, found none; check the path"),
    ],
)
def test_options_that_do_not_go_together(run: Run, annotations: Path, options: list[str], message: str) -> None:
    """Exit code 2 and one line."""
    code, out, err = run("alpaca_eval2", annotations, *options)
    assert (code, out) == (2, "") and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_an_unknown_kind_and_a_file_of_another_one(run: Run, annotations: Path, tmp_path: Path) -> None:
    code, _, err = run("alpaca_eval", annotations)
    assert code == 2 and "found 'alpaca_eval'; did you mean 'alpaca_eval" in err
    for kind in KINDS.keys() - {"alpaca_eval1", "alpaca_eval2"}:
        code, out, err = run(kind, annotations)
        assert (code, out) == (2, "") and err.startswith("error: annotations.json:1: expected a column '")
    (tmp_path / "a.txt").write_text("preference")
    code, _, err = run("alpaca_eval1", tmp_path / "a.txt")
    assert code == 2 and "expected a file that ends in .jsonl, .json, .csv" in err


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_file_without_rows(run: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.json").write_text("[]")
    code, _, err = run(kind, tmp_path / "a.json")
    assert code == 2 and "expected rows, found none" in err


# Arena-Hard with style, and MT-Bench


def test_the_best_model_stands_first_in_its_category(tmp_path: Path) -> None:
    """The model is shown second in the first game and first in the second one."""
    rows = [
        {
            "uid": f"{category} {place}",
            "category": category,
            "model": name,
            "baseline": "base",
            "games": [{"score": label} for label in labels],
        }
        for category in ("math", "coding")
        for name, labels in (("weak", ("A>B", "B>A")), ("strong", ("B>A", "A>B")))
        for place in range(3)
    ]
    (tmp_path / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score("arena_hard_v2.0", tmp_path / "judgements.jsonl", Options(bootstrap=2)).scores
    assert [(row["category"], row["model"], row["score"]) for row in found] == [
        ("coding", "strong", 100.0),
        ("coding", "weak", 0.0),
        ("math", "strong", 100.0),
        ("math", "weak", 0.0),
    ]


def test_style_control_by_answers(tmp_path: Path, run: Run) -> None:
    """Two models in two categories; the answers of all three models come in two files."""
    for name in ("ours", "theirs", "base"):
        lines = []
        for place in range(12):
            counts = {
                "token_len": 50 + 7 * place * len(name),
                "header_count": place % 3,
                "list_count": 1,
                "bold_count": 0,
            }
            lines.append({"uid": str(place), "model": name, "metadata": counts})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = ["A>B", "B>A", "A=B"]
    rows = [
        {
            "uid": str(place),
            "category": "coding" if place % 2 else "math",
            "model": name,
            "baseline": "base",
            "games": [{"score": labels[place % 3]}, {"score": labels[(place + len(name)) % 3]}],
        }
        for name in ("ours", "theirs")
        for place in range(12)
    ]
    (tmp_path / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [part for name in ("ours", "theirs", "base") for part in ("--answers", tmp_path / f"{name}.jsonl")]
    code, out, _ = run("arena_hard_v2.0", tmp_path / "judgements.jsonl", *paths, "--bootstrap", 3, "--json")
    found = json.loads(out)
    assert code == 0 and found["variant"] == "style control" and found["interval"] == 90
    assert {(row["category"], row["model"]) for row in found["scores"]} == {
        (category, name) for category in ("coding", "math") for name in ("ours", "theirs")
    }
    assert set(found["style"]["math vs base"]) == {"token_len", "header_count", "list_count", "bold_count"}
    code, _, err = run("arena_hard_v2.0", tmp_path / "judgements.jsonl", *paths[:2])
    assert code == 2 and "give its answers by --answers, too" in err


def test_mt_bench_knows_both_modes(tmp_path: Path, run: Run) -> None:
    single = {"question_id": 81, "model": "ours", "judge": ["gpt-4", "single-v1"], "turn": 1, "score": 7}
    (tmp_path / "single.jsonl").write_text(json.dumps(single))
    pair = {"question_id": 81, "model_1": "a", "model_2": "b", "judge": ["gpt-4", "pair-v2"], "turn": 1}
    (tmp_path / "pair.jsonl").write_text(json.dumps(pair | {"g1_winner": "model_1", "g2_winner": "model_1"}))
    found = score("mt_bench", tmp_path / "single.jsonl")
    assert found.variant == "single" and found.scores[0]["average"] == 7.0
    found = score("mt_bench", tmp_path / "pair.jsonl", Options(baseline="b"))
    assert found.variant == "pairwise" and [row["model"] for row in found.scores] == ["a"]
    code, _, err = run("mt_bench", tmp_path / "single.jsonl", "--baseline", "b")
    assert code == 2 and "--baseline: expected with comparisons" in err


def test_reward_bench_prints_its_sections(tmp_path: Path, run: Run) -> None:
    lines = ["score_chosen,score_rejected,subset", "1,0,math-prm", "0,0,hep-cpp", "2,1,donotanswer"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    code, out, err = run("reward_bench", tmp_path / "a.csv")
    # math-prm weighs 984 and hep-cpp 164: 984 / 1148.
    assert code == 0 and "Safety 100.00, Reasoning 85.71" in out and "note: subsets without pairs: alpacaeval-" in err


def test_the_accuracy_of_a_file_is_that_of_its_pairs(tmp_path: Path) -> None:
    """One pair right in one subset, three wrong in another: a quarter, where the mean of the subsets is a half."""
    lines = ["score_chosen,score_rejected,subset", "1,0,a", "0,1,b", "0,1,b", "0,1,b"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    summary = score("reward_bench", tmp_path / "a.csv").summary
    assert (summary["accuracy"], summary["n_pairs"]) == (25.0, 4)


# Imports


def test_scoring_loads_neither_torch_nor_transformers() -> None:
    code = "import alignment.evaluation.scoring, sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "scipy" in loaded and not loaded & {"torch", "transformers", "datasets", "pandas", "matplotlib"}
