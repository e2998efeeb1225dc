"""A judge behind a server that is not ours: ``transformers serve`` with a tiny model."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.errors import UserError
from alignment.oracles import Accounts, LabelOracle, ask, build_oracle
from alignment.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first token is A or B, whatever the question: their logits are opposite, all others are 0."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer(["Which answer is better? Reply with one letter, A or B."], vocab_size=300)
    model = tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2)
    direction = torch.randn(16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            # Small random weights see little more than the last token, which all questions share.
            weight.mul_(30.0 if weight.dim() == 2 else 1.0)
        model.lm_head.weight.zero_()
        for label, sign in (("A", 1.0), ("B", -1.0)):
            model.lm_head.weight[tokenizer(label, add_special_tokens=False)["input_ids"][0]] = sign * direction
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    with subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]) as process:
        try:
            wait_for_health(process, f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for_health(process: "subprocess.Popen[bytes]", address: str) -> None:
    """At most three minutes."""
    for _ in range(900):
        assert process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def test_it_judges(url: str, folder: Path, tmp_path: Path) -> None:
    """Verdicts over HTTP are those of the same model asked here: A where A is the likelier of the two."""
    prompts = [f"Question {n}?" for n in range(8)]
    left, right = [f"red {n}" for n in range(8)], [f"{n} green" for n in range(8)]
    own = LabelOracle(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    forward_N, backward_N = own.prefer(prompts, left, right).round(), own.prefer(prompts, right, left).round()
    assert set(torch.cat([forward_N, backward_N]).tolist()) == {0.0, 1.0}, "both labels occur"
    expected_N = (forward_N + 1 - backward_N) / 2
    block = {"kind": "judge", "model": str(folder), "base_url": url, "max_tokens": 1, "timeout": 120.0}
    accounts = Accounts(tmp_path)
    oracle = build_oracle({**block, "concurrency": 2}, accounts=accounts)
    assert ask(oracle, prompts, left, right).equal(expected_N)
    spent = accounts.spent
    assert (spent.calls, spent.retries, spent.unparsable, spent.completion_tokens) == (16, 0, 0, 16)
    assert spent.prompt_tokens > 16 * 30


def test_it_gives_no_log_probabilities(url: str, folder: Path) -> None:
    """It ignores the request for them, and an answer without them is no verdict of another kind."""
    block = {"kind": "judge", "model": str(folder), "base_url": url, "verdict": "logprobs", "timeout": 120.0}
    with pytest.raises(UserError, match="expected log-probabilities of the reply's first token, found none"):
        ask(build_oracle(block), ["Colour?"], ["red"], ["green"])
