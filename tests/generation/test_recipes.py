"""Engines by a recipe: keys that are read, refused or unread, and rounds that another engine answers."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment import loop
from alignment.config import build_arguments, load_recipe
from alignment.errors import UserError
from alignment.folders import RunResult
from tests.generation.http_stand_in import Reply, ScriptedServer, serving
from tests.generation.vllm_stand_in import Stack

ROOT = Path(__file__).parents[2]
ROUNDS = ROOT / "recipes" / "inpo" / "tiny.yaml"
ONLINE = ROOT / "recipes" / "egpo" / "tiny.yaml"
MIXED = ["method.name=ipo_md", "method.mix=0.1"]
SERVER = "sampling.server={base_url: 'http://127.0.0.1:9/v1', model: m, serves_policy: true, retries: 0}"
VLLM_SERVER = "sampling.vllm={mode: server, base_url: 'http://127.0.0.1:9/v1', exchange_folder: x, concurrency: 4}"
SMALL = [
    "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}",
    "training.max_steps=1",
    "training.disable_tqdm=true",
    "sampling.num_completions=3",
    "sampling.max_new_tokens=4",
    "schedule.rounds=1",
    "data.prompts.limit=8",
]


def run(folder: Path, *overrides: str) -> RunResult:
    return loop.run(load_recipe(ROUNDS, [*SMALL, f"output_dir={folder}", *overrides]).recipe)


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ([], None),
        (["sampling.continuous_batching=true"], {"continuous_batching": True}),
        (["sampling.engine=vllm", "sampling.vllm.sleep=false"], {"sleep": False}),
        (
            ["sampling.engine=vllm", VLLM_SERVER],
            {"mode": "server", "base_url": "http://127.0.0.1:9/v1", "exchange_folder": "x", "concurrency": 4},
        ),
    ],
)
def test_options_reach_the_trainer_and_the_resolved_recipe(
    tmp_path: Path, overrides: list[str], options: dict[str, Any] | None
) -> None:
    recipe = load_recipe(ONLINE, [*overrides, "training.disable_tqdm=true"]).recipe
    assert build_arguments(recipe).engine_options == options
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(recipe.to_yaml())
    assert load_recipe(resolved).recipe.sampling.engine_options == options


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (ONLINE, ["sampling.engine=openai", SERVER], "'openai' cannot take new weights"),
        (ONLINE, [*MIXED, "sampling.engine=vllm"], "cannot sample from a mixture of two models"),
        (ROUNDS, ["sampling.engine=openai"], "expected sampling.server with base_url and model"),
        (
            ROUNDS,
            ["sampling.engine=openai", SERVER.replace("true", "false"), "schedule.rounds=1"],
            "sampling.server.serves_policy = true, your word",
        ),
        (ROUNDS, ["sampling.engine=openai", SERVER, "schedule.rounds=2"], "expected schedule.rounds = 1"),
        (ROUNDS, ["sampling.engine=enumerate", "sampling.responses=[a, b]"], "rounds sample their answers"),
        (ONLINE, ["sampling.vllm.sleep=true"], "expected sampling.vllm only with the engine 'vllm'"),
        (
            ONLINE,
            ["sampling.engine=vllm", "sampling.continuous_batching=true"],
            "expected sampling.continuous_batching only with the engine 'transformers'",
        ),
        (ONLINE, ["sampling.engine=vllm", "sampling.vllm.base_url=x"], "expected no base_url with mode: colocate"),
        (
            ONLINE,
            ["sampling.engine=vllm", VLLM_SERVER, "sampling.vllm.sleep=true"],
            "expected no sleep with mode: server",
        ),
        (ONLINE, ["sampling.engine=vllm", "sampling.vllm.mode=server"], "expected base_url and exchange_folder"),
        (ONLINE, ["sampling.engine=vllm", "sampling.vllm.slep=true"], "sampling.vllm.slep"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_in_one_line(recipe: Path, overrides: Sequence[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides)
    assert len(str(caught.value).splitlines()) == 1 and message in str(caught.value)


@pytest.mark.parametrize("path", [ONLINE, ROUNDS], ids=["online", "rounds"])
def test_a_missing_library_is_said_before_a_model_is_loaded(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "vllm" in sys.modules:
        pytest.skip("vLLM is there")
    recipe = load_recipe(path, ["sampling.engine=vllm", f"output_dir={tmp_path / 'run'}"]).recipe
    for module in ("alignment.loop", "alignment.round_models"):
        monkeypatch.setattr(f"{module}.load_policy", lambda *arguments, **options: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="expected the extra `vllm`"):
        loop.run(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rounds_are_answered_by_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One LLM for all rounds; each round's policy is pushed before it answers, and the held-out answers are its own."""
    stack = Stack(vocabulary=200)
    for name, module in stack.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: sys.modules.get(name))
    run(tmp_path / "run", "schedule.rounds=2", "sampling.engine=vllm")
    assert stack.events.count("load") == 1
    # In each round: the policy answers, then the reference and the trained policy answer the held-out prompts.
    assert stack.events.count("push") == 6
    said = [json.loads(line)["completion_ids"] for line in (tmp_path / "run/round-1/answers.jsonl").open()]
    assert all(1 <= len(ids) <= 4 for group in said for ids in group)


@pytest.mark.slow
def test_a_round_is_answered_by_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tokens of its text, with the end of the turn; what the trained policy says comes from the policy itself."""

    def answer(path: str, body: dict[str, Any]) -> Reply:
        text = "yes " * (body["seed"] % 2) + "no"
        return 200, {"id": "1", "choices": [{"index": 0, "text": text, "finish_reason": "stop"}]}

    with serving(ScriptedServer(answer)) as server:
        options = f"sampling.server={{base_url: '{server.base_url}', model: policy, serves_policy: true}}"
        run(tmp_path / "run", "sampling.engine=openai", options)
        asked = len(server.requests)
    rows = [json.loads(line) for line in (tmp_path / "run/round-1/answers.jsonl").open()]
    assert asked == 3 * len(rows)
    assert {text for row in rows for text in row["responses"]} == {"no", "yes no"}
    ends = {ids[-1] for row in rows for ids in row["completion_ids"]}
    assert len(ends) == 1
    printed = capsys.readouterr().err
    assert "held-out answers are drawn by transformers" in printed


def test_a_prompt_longer_than_the_context_is_said_before_anything_is_sampled(tmp_path: Path) -> None:
    short = "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300, max_position_embeddings: 8}"
    with pytest.raises(UserError, match=r"behind every prompt in the 8 positions of the model"):
        run(tmp_path / "run", short)
    assert not list((tmp_path / "run").glob("round-*/answers.jsonl"))
