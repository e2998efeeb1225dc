"""From recipe to run folder, and every kind of bad input through the command line."""

import gzip
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment import loop
from alignment.cli import main
from alignment.config import load_recipe
from alignment.errors import UserError

GOOD = [
    {"prompt": f"Say the number {word}.", "chosen": f"{word}.", "rejected": f"I would rather not say {word} now."}
    for word in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
]

RECIPE = """
method: {{name: dpo, beta: 0.1}}
policy: {{tiny: {{vocab_size: 300, hidden_size: 16, num_heads: 2}}}}
data:
  preferences: {{path: {path}, format: {format}}}
  eval_fraction: 0.2
  max_prompt_length: 24
  max_completion_length: 24
schedule: {{kind: offline}}
training: {{learning_rate: 1e-2, per_device_train_batch_size: 4, max_steps: 6, logging_steps: 2, save_strategy: "no",
           disable_tqdm: true}}
output_dir: {output}
"""


def write_recipe(folder: Path, lines: list[str] | bytes, *, format: str = "pairs", name: str = "pairs.jsonl") -> Path:
    data = folder / name
    data.write_bytes(lines if isinstance(lines, bytes) else "\n".join(lines).encode())
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=data, format=format, output=folder / "run"))
    return recipe


def rows(*extra: object) -> list[str]:
    return [json.dumps(row) for row in (*GOOD, *extra)]


def test_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder holds the resolved recipe, versions, metrics and a model that plain transformers loads."""
    recipe = load_recipe(write_recipe(tmp_path, rows())).recipe
    result = loop.run(recipe)
    assert load_recipe(result.folder / "recipe.yaml").recipe == recipe
    assert json.loads((result.folder / "versions.json").read_text())["alignment"]
    logged = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in logged) and any("eval_accuracy" in line for line in logged)
    model = AutoModelForCausalLM.from_pretrained(result.model_folder)
    tokenizer = AutoTokenizer.from_pretrained(result.model_folder)
    assert model.config.vocab_size == len(tokenizer) and tokenizer.chat_template
    # Before training policy and reference are one: log 2, no margin, accuracy one half.
    assert result.before["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert result.before["accuracy"] == pytest.approx(0.5)
    assert result.after["margin"] > 0
    said = capsys.readouterr().err
    assert "accuracy" in said and "margin" in said and "log-prob of chosen" in said
    card = (result.model_folder / "README.md").read_text()
    assert card.startswith("---\n") and "arxiv.org/abs/2305.18290" in card and "@misc{dpo" in card
    assert "beta: 0.1" in card and str(tmp_path / "pairs.jsonl") in card and "| margin | 0.0000 |" in card


def test_lora(tmp_path: Path) -> None:
    """An adapter run saves an adapter, and its reference is the base model."""
    recipe = load_recipe(write_recipe(tmp_path, rows()), ["policy.lora.rank=4"]).recipe
    result = loop.run(recipe)
    assert (result.model_folder / "adapter_config.json").exists()
    assert result.before["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert result.after["loss"] < result.before["loss"]


def test_the_average_is_no_point_of_the_policy(tmp_path: Path) -> None:
    """Its figures have names of their own: the last of the policy's is what the summary says of it."""
    recipe = load_recipe(write_recipe(tmp_path, rows()), ["average.decay=1"]).recipe
    result = loop.run(recipe)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((result.folder / "summary.json").read_text())
    policy, average = ([line[name] for line in lines if name in line] for name in ("eval_loss", "average_loss"))
    assert policy[-1] == summary["after"]["loss"] != summary["average"]["loss"]
    assert average == [summary["average"]["loss"]]


def run(recipe: object, *overrides: str) -> None:
    """``alignment train`` that must succeed."""
    with pytest.raises(SystemExit) as stop:
        main(["train", str(recipe), *overrides])
    assert stop.value.code == 0


FATAL = {
    "empty file": ("", "pairs.jsonl"),
    "no chosen": (rows({"prompt": "A", "rejected": "B"}), "chosen"),
    "no responses": (
        [json.dumps({"prompt": row["prompt"]}) for row in GOOD],
        "found the format prompts; map its columns",
    ),
    "no common word for a label": (
        [json.dumps({"prompt": "A", "responses": ["b", "c"], "label": 0})],
        ":1: expected a common word for a label in the column 'label', found '0'",
    ),
    "nan": ([*rows()[:1], '{"prompt": "A", "chosen": "B", "rejected": "C", "preference": NaN}'], "preference"),
    "broken json": ([*rows(), '{"prompt": '], ":11"),
}


@pytest.mark.parametrize("case", FATAL)
def test_bad_files_are_one_clear_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line that names the file, no trace."""
    lines, expected = FATAL[case]
    content = lines if isinstance(lines, list) else [lines]
    with pytest.raises(SystemExit) as stop:
        main(["train", str(write_recipe(tmp_path, content, format="auto"))])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "pairs.jsonl" in errors[0] and expected in errors[0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.optim_args=foo", "expected what makes"),
        ("training.lr_scheduler_kwargs={foo: 1}", "expected what makes"),
        ("training={lr_scheduler_type: constant, warmup_steps: 0.1}", "expected 0 for 'constant', which does not warm"),
    ],
)
def test_options_of_no_optimizer_are_named_before_a_row_is_read(override: str, said: str, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, rows()), [override]).recipe
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(UserError, match=said):
        loop.run(recipe)


def test_missing_file_and_broken_gzip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for a file that is not there, and for one that is cut in the middle."""
    cut = gzip.compress("\n".join(rows()).encode())[:-20]
    broken = write_recipe(tmp_path, cut, name="pairs.jsonl.gz")
    for recipe, overrides in ((broken, []), (broken, ["data.preferences.path=nowhere.jsonl"])):
        with pytest.raises(SystemExit) as stop:
            main(["train", str(recipe), *overrides])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and "Traceback" not in said
        assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1


def test_rows_that_cannot_teach_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty reply, equal replies, differing prompts, a prompt over the limit: skipped, counted, named by row."""
    transcripts = [
        {"chosen": f"\n\nHuman: Say {w}.\n\nAssistant: {w}", "rejected": f"\n\nHuman: Say {w}.\n\nAssistant: no"}
        for w in ("one", "two", "three", "four", "five", "six")
    ]
    bad = [
        {"chosen": "\n\nHuman: A\n\nAssistant: ", "rejected": "\n\nHuman: A\n\nAssistant: b"},
        {"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: A\n\nAssistant: b"},
        {"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: C\n\nAssistant: d"},
        {
            "chosen": f"\n\nHuman: {'x y ' * 80}\n\nAssistant: b",
            "rejected": f"\n\nHuman: {'x y ' * 80}\n\nAssistant: c",
        },
    ]
    recipe = write_recipe(tmp_path, [json.dumps(row) for row in (*transcripts, *bad)], format="hh")
    run(recipe, "training.max_steps=1", "data.eval_fraction=0.4")
    said = capsys.readouterr().err
    assert "skipped 3:" in said and all(f"pairs.jsonl:{line}" in said for line in (7, 8, 9, 10))
    assert "prompt longer than 24 tokens" in said


def test_swapping_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One override swaps the loss; beta is dropped aloud; a method that needs more is refused before any model."""
    recipe = str(write_recipe(tmp_path, rows()))
    run(recipe, "method.name=ipo", "method.tau=0.1", "training.max_steps=1")
    assert "dropped beta" in capsys.readouterr().err
    for overrides, expected in (
        (["method.name=egpo"], "needs schedule 'online' and an oracle that answers on fresh samples"),
        (["method.nme=ipo"], "did you mean 'method.name'"),
        (["method.name=onpo", "method.eta=100"], "needs schedule 'iterative'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", recipe, *overrides])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and expected in said and "policy:" not in said


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_real_pairs(real_data: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped recipe on the 2,312 real pairs: 9 rows skipped, held-out accuracy and margin rise."""
    path = real_data("preferences/hh_harmless_base_test.jsonl.gz")  # type: ignore[operator]
    monkeypatch.setenv("ALIGNMENT_REAL_DATA", str(path.parent.parent))
    overrides = [f"output_dir={tmp_path}", "training.disable_tqdm=true", "training.save_strategy=no"]
    result = loop.run(load_recipe("recipes/dpo/tiny_hh.yaml", overrides).recipe)
    assert result.after["accuracy"] > 0.52 and result.after["margin"] > 0
    assert result.after["loss"] < result.before["loss"]
    AutoModelForCausalLM.from_pretrained(result.model_folder)
