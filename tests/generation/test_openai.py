"""An OpenAI-compatible server: its text as tokens, faults and retries, refusals, and transformers' own server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from alignment.data import Turn
from alignment.errors import UserError
from alignment.generation import Decoding, ServerOptions, build_engine, engine_refusal
from alignment.generation.chat import ChatServer
from alignment.methods import build_method
from alignment.tiny import tiny_model, tiny_tokenizer
from tests.generation.http_stand_in import Reply, ScriptedServer, serving

SECONDS_TO_START = 120


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(["red green blue"], vocab_size=300)


def decoding(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Decoding:
    settings = {
        "temperature": 0.9,
        "max_new_tokens": 8,
        "stop_token_ids": (tokenizer.eos_token_id,),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Decoding(**{**settings, **changes})


def says(text: Any, reason: str = "stop") -> Reply:
    return 200, {
        "id": "1",
        "object": "text_completion",
        "choices": [{"index": 0, "text": text, "finish_reason": reason}],
    }


def echo(path: str, body: dict[str, Any]) -> Reply:
    """The last word of the prompt, and the seed's last digit."""
    assert path == "/v1/completions" and body["model"] == "remote"
    return says(f"{body['prompt'].split()[-1]} {body['seed'] % 10}")


def engine(server: ScriptedServer, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Any:
    return build_engine("openai", {"base_url": server.base_url, "model": "remote", **options}, tokenizer)


def prompts(tokenizer: PreTrainedTokenizerFast, *texts: str) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_text_becomes_tokens_in_the_order_of_the_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    """Every answer is a request with a seed of its own; 'stop' ends it with the stop token."""
    with serving(ScriptedServer(echo)) as server:
        asked = engine(server, tokenizer, concurrency=3)
        bare = prompts(tokenizer, "say red", "say <|end|> blue")
        answers = asked.answer(None, bare, decoding(tokenizer), num_completions=4, seeds=[5, 6])
        again = asked.answer(None, bare, decoding(tokenizer), num_completions=4, seeds=[5, 6])
        asked.close()
    assert answers == again
    for word, group in zip(("red", "blue"), answers, strict=True):
        assert len(group) == 4
        for said in group:
            assert said[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(said[:-1])[:-1] == f"{word} "
    bodies = [body for _, body in server.requests]
    assert len({body["seed"] for body in bodies}) == 8
    assert {body["prompt"] for body in bodies} == {"say red", "say <|end|> blue"}
    assert {(body["temperature"], body["max_tokens"], body["top_p"]) for body in bodies} == {(0.9, 8, 1.0)}
    assert server.most_at_once <= 3


def test_what_was_cut_by_length_has_no_stop_token_and_an_empty_answer_has_one(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    replies = [says("green green green", "length"), says("")]
    with serving(ScriptedServer(echo, replies)) as server:
        asked = engine(server, tokenizer, concurrency=1)
        (cut, empty) = asked.answer(
            None, prompts(tokenizer, "a", "b"), decoding(tokenizer, max_new_tokens=2), num_completions=1, seeds=[0, 1]
        )
        asked.close()
    assert len(cut[0]) == 2 and tokenizer.eos_token_id not in cut[0]
    assert empty == [[tokenizer.eos_token_id]]


@pytest.mark.parametrize(
    "fault",
    [(429, {"error": "slow down"}), (500, {"error": "oops"}), (0, ""), (200, "{not json"), (200, {"choices": []})],
    ids=["429", "500", "dropped", "malformed", "no-choices"],
)
def test_a_fault_is_tried_again(tokenizer: PreTrainedTokenizerFast, fault: Reply) -> None:
    with serving(ScriptedServer(echo, [fault])) as server:
        asked = engine(server, tokenizer, retries=1, concurrency=1)
        ((said,),) = asked.answer(None, prompts(tokenizer, "x red"), decoding(tokenizer), num_completions=1, seeds=[0])
        asked.close()
    assert tokenizer.decode(said).startswith("red ") and len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((500, {"error": "oops"}), "no answer after 1 tries .*is the server running"),
        ((404, {"error": "no such model"}), "does it know the model"),
        ((200, {"text": "?"}), "expected a reply with choices"),
        (says(None), "expected a text that ended with 'stop' or 'length'"),
        (says("x", "content_filter"), "expected a text that ended with 'stop' or 'length'"),
        (says("", "length"), "cut by length and holds no text"),
    ],
)
def test_a_fault_that_stays_is_said(tokenizer: PreTrainedTokenizerFast, reply: Reply, message: str) -> None:
    with serving(ScriptedServer(lambda path, body: reply)) as server:
        asked = engine(server, tokenizer, retries=0)
        with pytest.raises(UserError, match=message):
            asked.answer(None, prompts(tokenizer, "x"), decoding(tokenizer), num_completions=2, seeds=[0])
        asked.close()


def test_an_unreachable_server_is_said(tokenizer: PreTrainedTokenizerFast) -> None:
    with serving(ScriptedServer(echo)) as server:
        pass
    asked = engine(server, tokenizer, retries=0)
    with pytest.raises(UserError, match=r"no answer after 1 tries .*APIConnectionError"):
        asked.answer(None, prompts(tokenizer, "x"), decoding(tokenizer), num_completions=1, seeds=[0])
    asked.close()


def test_a_prompt_whose_text_is_other_tokens_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokens of "red" one letter at a time have the text "red", which a server reads as fewer tokens."""
    letters = [ids[0] for ids in prompts(tokenizer, "r", "e", "d")]
    assert letters != prompts(tokenizer, "red")[0]
    with serving(ScriptedServer(echo)) as server:
        asked = engine(server, tokenizer)
        with pytest.raises(UserError, match="would be read as other tokens"):
            asked.answer(None, [letters], decoding(tokenizer), num_completions=1, seeds=[0])
        with pytest.raises(UserError, match=r"sampling\.top_k"):
            asked.answer(None, [[5]], decoding(tokenizer, top_k=3), num_completions=1, seeds=[0])
        asked.close()
    assert not server.requests


def test_a_missing_key_is_said(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    options = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "MY_KEY"}
    with pytest.raises(UserError, match="environment variable MY_KEY, found none"):
        build_engine("openai", options, tokenizer)


def test_a_method_that_samples_while_it_trains_is_refused() -> None:
    online, rounds = (build_method({"name": name, "tau": 0.1, **more}).needs for name, more in METHODS.items())
    assert "cannot take new weights" in str(engine_refusal("openai", online))
    assert engine_refusal("openai", rounds) is None
    assert engine_refusal("vllm", online) is None


METHODS: dict[str, dict[str, Any]] = {"online_ipo": {}, "inpo": {"eta": 0.5}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[str, str]]:
    """``transformers serve`` with a tiny model: its address, and the model's name there."""
    folder = tmp_path_factory.mktemp("served") / "model"
    model = tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2)
    # The server's temperature means nothing to a model that answers greedily by default.
    model.generation_config = GenerationConfig(
        do_sample=True, top_k=0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder.parent / "log").open("w")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"], stdout=log, stderr=log, env={**os.environ, "CI": "1"}
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, folder.parent / "log")
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no answer at {url}: {log.read_text()}")


@pytest.mark.slow
def test_transformers_serve_answers(served: tuple[str, str], tokenizer: PreTrainedTokenizerFast) -> None:
    """A real server: answers within their length, one after the other by the seed."""
    base_url, model = served
    asked = build_engine("openai", {"base_url": base_url, "model": model, "concurrency": 1}, tokenizer)
    bare = prompts(tokenizer, "red green", "blue")
    answers = asked.answer(None, bare, decoding(tokenizer), num_completions=3, seeds=[1, 2])
    again = asked.answer(None, bare, decoding(tokenizer), num_completions=3, seeds=[1, 2])
    asked.close()
    assert answers == again
    flat = [tuple(said) for group in answers for said in group]
    assert len(flat) == 6 and len(set(flat)) > 3
    assert all(1 <= len(said) <= 9 for said in flat)


@pytest.mark.slow
def test_transformers_serve_answers_conversations(served: tuple[str, str]) -> None:
    """The same seed gives the same; the server's template reads all turns."""
    base_url, model = served
    asked = ChatServer(ServerOptions(base_url=base_url, model=model, concurrency=1))
    turns = [Turn("user", "red"), Turn("assistant", "green"), Turn("user", "blue")]
    options = {"temperature": 1.0, "max_new_tokens": 8, "num_completions": 3}
    answers = asked.answer([turns[:1], turns], seeds=[1, 2], **options)
    again = asked.answer([turns[:1], turns], seeds=[1, 2], **options)
    asked.close()
    assert answers == again
    assert [len(group) for group in answers] == [3, 3] and len({text for group in answers for text in group}) > 3
