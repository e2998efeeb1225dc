"""What a stranger may get wrong in evaluating: exit code 2, and one line that says what is there and what to do."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from alignment.cli import main

PROMPTS = ("Why?", "How?", "Who?", "When?")
EVALUATION = """
policies:
  mine: {outputs: mine.json}
  base: {outputs: base.json}
opponents: [base]
prompts: {path: prompts.jsonl}
oracle: {kind: rule, rule: shorter}
output_dir: out
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files, and ones that are empty, of another format, or no text."""
    folder = tmp_path_factory.mktemp("stranger")
    for name, texts in {"mine": "abcd", "base": ("a", "bb", "ccc", "d")}.items():
        rows = [{"instruction": prompt, "output": text} for prompt, text in zip(PROMPTS, texts, strict=True)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"instruction": text}) + "\n" for text in PROMPTS))
    (folder / "eval.yaml").write_text(EVALUATION)
    (folder / "judged.csv").write_text("instruction_id,preference,len_1,len_2\n0,2.0,9,14\n1,1.0,12,7\n")
    for suffix in ("json", "jsonl", "csv", "yaml"):
        (folder / f"empty.{suffix}").write_text("")
        (folder / f"bytes.{suffix}").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    return folder


POLICIES = "mine=mine.json base=base.json"
RULE = "--oracle kind=rule --oracle rule=shorter"
WRONG = {
    "evaluate none.yaml": "no file 'none.yaml', and no shipped recipe of this name; `alignment recipes list`",
    "evaluate empty.yaml": "empty.yaml: expected keys with their values, found nothing: the file is empty",
    "evaluate list.yaml": "list.yaml: expected keys with their values, found a list of 2",
    "evaluate bytes.yaml": "bytes.yaml: expected a YAML file in UTF-8, found other bytes",
    "evaluate .": "expected a recipe file, got the folder '.'",
    "evaluate eval.yaml prompts.pth=x": "unknown key 'prompts.pth'; did you mean 'prompts.path'?",
    "evaluate eval.yaml prompts.path=none.jsonl": "none.jsonl: expected a file, found nothing; check the path",
    "evaluate eval.yaml prompts.path=empty.jsonl": "empty.jsonl: expected at least one row, found none",
    "evaluate eval.yaml prompts.path=bytes.jsonl": "bytes.jsonl: expected UTF-8 text after line 0",
    "evaluate eval.yaml policies.mine.outputs=none.json": "none.json: expected a file, found none; check the path",
    "evaluate eval.yaml policies.mine.outputs=empty.json": "empty.json: expected rows, found none; the file is empty",
    "evaluate eval.yaml policies.mine.outputs=judged.csv": "judged.csv:2: expected a column 'instruction'",
    "evaluate eval.yaml output_dir=prompts.jsonl": "'prompts.jsonl': File exists; name another file or folder",
    "evaluate eval.yaml 'oracle={kind: judge, model: m, base_url: \"http://127.0.0.1:9/v1\", api_key_env: NO_KEY}'": (
        "expected the key in the environment variable NO_KEY, found it unset; `export NO_KEY=...` before the command"
    ),
    "score alpaca_evl1 judged.csv": "found 'alpaca_evl1'; did you mean 'alpaca_eval1'?",
    "score alpaca_eval1 none.csv": "none.csv: expected a file, found none; check the path",
    "score alpaca_eval1 empty.csv": "empty.csv: expected rows, found none; the file is empty",
    "score alpaca_eval1 bytes.jsonl": "bytes.jsonl: expected UTF-8 text after line 0",
    "score alpaca_eval1 picture.png": "picture.png: expected a file that ends in .jsonl, .json, .csv",
    "score alpaca_eval1 prompts.jsonl": "prompts.jsonl:1: expected a column 'preference', found 'instruction'",
    "score alpaca_eval1 judged.csv --unit prompt": "--unit: expected with the kinds arena_hard_v0.1, arena_hard_v2.0",
    "score mt_bench empty.jsonl": "empty.jsonl: expected rows, found none; the file is empty",
    f"crossplay {POLICIES}": "--oracle: expected one YAML file, or the keys of an oracle, got nothing; give --oracle",
    f"crossplay {POLICIES} --oracle none.yaml": "no file 'none.yaml', and no shipped recipe of this name",
    f"crossplay {POLICIES} --oracle empty.yaml": "empty.yaml: expected keys with their values, found nothing",
    f"crossplay {POLICIES} --oracle kind=rule --oracle rul=x": "unknown key 'rul' for kind 'rule'; did you mean",
    f"crossplay mine=mine.json base=none.json {RULE}": "none.json: expected a file, found none; check the path",
    f"crossplay mine=mine.json base=empty.json {RULE}": "empty.json: expected rows, found none; the file is empty",
    f"crossplay mine=mine.json base=bytes.jsonl {RULE}": "bytes.jsonl: expected UTF-8 text after line 0",
    f"crossplay {POLICIES} {RULE} --output prompts.jsonl": "prompts.jsonl",
    "diagnose none.jsonl": "none.jsonl: expected a file, found nothing; check the path",
    "diagnose empty.json": "empty.json: expected at least one row, found none; the file is empty",
    "diagnose empty.yaml": "empty.yaml: expected keys with their values, found nothing: the file is empty",
    "diagnose bytes.jsonl": "bytes.jsonl: expected UTF-8 text after line 0",
    "diagnose picture.png": "picture.png: expected a file ending in .jsonl, .json, .csv",
    "diagnose judged.csv": "judged.csv:2: expected the columns of a known format",
    "diagnose prompts.jsonl": "expected comparisons of responses, found none (4 rows (prompts); skipped 0)",
    "diagnose judged.csv colums.prompt=x": "unknown key 'colums'; did you mean 'columns'?",
    "diagnose eval.yaml": "expected an oracle of kind matrix or textgame, or one made of such",
}


@pytest.mark.parametrize("command", WRONG)
def test_a_mistake_is_a_line_with_the_next_step(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command))
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (stopped.value.code, out) == (2, "") and WRONG[command] in line
    assert not (folder / "out" / "outputs").exists(), "nobody has answered"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there")
def test_a_missing_engine_is_said_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    server = "policies.mine={server: {base_url: 'http://127.0.0.1:9/v1', model: m}}"
    sampling = "sampling={temperature: 1.0, max_new_tokens: 4, engine: vllm}"
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "eval.yaml", server, "policies.mine.outputs=null", sampling, "output_dir=unmade"])
    line = "error: the engine 'vllm' needs the package 'vllm': expected the extra `vllm` "
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(line)
    assert not (folder / "unmade").exists()
