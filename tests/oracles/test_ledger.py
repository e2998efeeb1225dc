"""The ledger: who reads whose verdicts, what survives a kill, and what processes that share it may spend."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.data import PromptText, Turn
from alignment.errors import BudgetError, UserError
from alignment.oracles import Accounts, Budget, Figures, MatrixOracle, RuleOracle, ask, build_oracle, deciding_keys
from alignment.oracles.kept import KeptOracle, LocalAsker
from alignment.oracles.ledger import Ledger, Question, Verdict
from alignment.tiny import tiny_model, tiny_reward_model, tiny_tokenizer
from tests.oracles.server import Reply, prefers_longer, serve

ROOT = Path(__file__).parents[2]


class Counting:
    """Prefers what stands first with .9, and counts the questions."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, str, str]] = []

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        self.questions += zip(prompts, left, right, strict=True)
        return torch.full((len(prompts),), 0.9, dtype=torch.float64)


def kept(folder: Path | None, oracle: Any, budget: Budget | None = None, **identity: Any) -> KeptOracle:
    account = Accounts(folder).open({"kind": "test", "model": "m", **identity}, ledger=True, budget=budget)
    return KeptOracle(LocalAsker(oracle, account), account)


# Who reads what ------------------------------------------------------------------------------------------------------


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    assert kept(tmp_path, first).prefer(["x", "x"], ["a", "b"], ["b", "a"]).tolist() == [0.9, 0.9]
    assert kept(tmp_path, second).prefer(["x", "y"], ["a", "a"], ["b", "b"]).tolist() == [0.9, 0.9]
    assert first.questions == [("x", "a", "b"), ("x", "b", "a")] and second.questions == [("y", "a", "b")]


def test_every_verdict_stands_under_its_own_question(tmp_path: Path) -> None:
    """They are asked by length and delivered by place: answers of mixed lengths, each with a probability of its own."""
    oracle = RuleOracle(lambda prompt, left, right: len(left) / 100)
    lengths = [70, 10, 40, 90, 20]
    answers_N = kept(tmp_path, oracle).prefer(["x"] * 5, ["a" * length for length in lengths], ["b"] * 5)
    assert answers_N.tolist() == [length / 100 for length in lengths]


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "judge", "model": "n"},
        {"model": "m", "base_url": "http://127.0.0.2/v1"},
        {"version": "2"},
        {"template": "T"},
        {"decoding": {"temperature": 0.7}},
        {"decoding": {"max_tokens": 2}},
    ],
)
def test_another_oracle_reads_nothing_of_it(tmp_path: Path, other: dict[str, Any]) -> None:
    kept(tmp_path, Counting()).prefer(["x"], ["a"], ["b"])
    asked = Counting()
    kept(tmp_path, asked, **other).prefer(["x"], ["a"], ["b"])
    assert asked.questions == [("x", "a", "b")]


def test_a_judge_s_block_is_its_identity(tmp_path: Path) -> None:
    """Every key that decides an answer asks anew; every other one does not."""
    (tmp_path / "t.txt").write_text("{prompt}? Answer A:\n{left}\n\nAnswer B:\n{right}\n\nWhich answer")
    deciding: list[dict[str, Any]] = [
        {"model": "n"},
        {"version": "2"},
        {"template": str(tmp_path / "t.txt")},
        {"temperature": 0.5},
        {"max_tokens": 3},
        {"labels": ["B", "A"]},
        {"pattern": "(A|B)"},
    ]
    free: list[dict[str, Any]] = [
        {"timeout": 6.0, "retries": 1, "backoff": 0.5, "concurrency": 2},
        {"prices": {"prompt": 1, "completion": 1}, "budget": {"calls": 99}, "max_unparsable": 0.5},
    ]
    with serve() as server:
        block = {"kind": "judge", "model": "m", "base_url": server.url, "symmetrize": False}
        for position, keys in enumerate([{}, *deciding]):
            ask(build_oracle({**block, **keys}, accounts=Accounts(tmp_path)), ["x"], ["aa"], ["b"])
            assert len(server.requests) == position + 1, keys
        for keys in free:
            ask(build_oracle({**block, **keys}, accounts=Accounts(tmp_path)), ["x"], ["aa"], ["b"])
            assert len(server.requests) == 1 + len(deciding), keys
            assert deciding_keys({**block, **keys}) == block


def test_turns_are_part_of_the_question(tmp_path: Path) -> None:
    """A conversation and its flattened text read alike and are rendered differently."""
    flat = PromptText("a\nb", (Turn("user", "a\nb"),))
    turns = PromptText("a\nb", (Turn("user", "a"), Turn("assistant", "b")))
    asked = Counting()
    kept(tmp_path, asked).prefer([flat, turns, "a\nb"], ["l"] * 3, ["r"] * 3)
    assert len(asked.questions) == 2


def test_the_ledger_says_what_was_asked(tmp_path: Path) -> None:
    with serve() as server:
        block = {"kind": "judge", "model": "m", "base_url": server.url}
        ask(build_oracle(block, accounts=Accounts(tmp_path)), ["Why?"], ["longer"], ["short"])
    with sqlite3.connect(tmp_path / "oracle.sqlite") as file:
        rows = file.execute("SELECT prompt, shown_first, shown_second, probability, reply FROM verdicts").fetchall()
        ((identity,),) = file.execute("SELECT identity FROM oracles").fetchall()
    assert sorted(rows) == [("Why?", "longer", "short", 1.0, "A"), ("Why?", "short", "longer", 0.0, "B")]
    said = json.loads(identity)
    assert said["model"] == "m" and "{left}" in said["template"] and said["decoding"]["temperature"] == 0.0


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at\n" * 50)
    with pytest.raises(UserError, match=r"oracle\.ledger: expected a ledger or a new file at '.*text', found"):
        Ledger(tmp_path / "text")
    with sqlite3.connect(tmp_path / "newer.sqlite") as file:
        file.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match=r"expected a ledger of format 1 .* found format 7"):
        Ledger(tmp_path / "newer.sqlite")
    with pytest.raises(UserError, match=r"oracle\.ledger: expected a ledger"):
        Ledger(tmp_path / "text" / "below.sqlite")


# Local models --------------------------------------------------------------------------------------------------------


def test_a_model_is_its_weights(tmp_path: Path) -> None:
    """The same folder with other weights answers anew; the ledger of the first is not read."""
    tokenizer = tiny_tokenizer(["A B red green"], vocab_size=300)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    folder = tmp_path / "model"
    answers = []
    for seed in (0, 0, 1):
        tiny_model(tokenizer, **sizes, seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        accounts = Accounts(tmp_path / "run")
        oracle = build_oracle({"kind": "language_model", "model": str(folder), "ledger": True}, accounts=accounts)
        answers.append((ask(oracle, ["x"], ["red"], ["green"]).item(), accounts.spent.calls, len(accounts.summary())))
        accounts.close()
    assert answers[0][0] == answers[1][0] != answers[2][0]
    assert [calls for _, calls, _ in answers] == [2, 2, 2], "two calls, none more, two of the other weights"


def test_models_report_the_inconsistency_of_their_orders(tmp_path: Path) -> None:
    """A reward model has none, also without a ledger; a language model's is what its two orders miss of one."""
    tokenizer = tiny_tokenizer(["A B red green"], vocab_size=300)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    for name, model in (("lm", tiny_model(tokenizer, **sizes)), ("rm", tiny_reward_model(tokenizer, **sizes))):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    texts = ["x", "y"], ["red", "a"], ["green", "b"]
    accounts = Accounts(tmp_path)
    oracle = build_oracle({"kind": "language_model", "model": str(tmp_path / "lm")}, accounts=accounts)
    ask(oracle, *texts)
    own = build_oracle({"kind": "language_model", "model": str(tmp_path / "lm"), "symmetrize": False}).oracle.oracle  # type: ignore[attr-defined]
    both = own.prefer(*texts) + own.prefer(texts[0], texts[2], texts[1])
    assert accounts.spent.as_numbers()["inconsistency"] == pytest.approx((both - 1).abs().mean().item(), abs=1e-9)
    assert not (tmp_path / "oracle.sqlite").exists()
    accounts = Accounts(tmp_path)
    ask(build_oracle({"kind": "bradley_terry", "model": str(tmp_path / "rm")}, accounts=accounts), *texts)
    assert accounts.spent.as_numbers()["inconsistency"] == pytest.approx(0.0, abs=1e-9)


def test_a_model_s_budget_is_questions(tmp_path: Path) -> None:
    asked = Counting()
    oracle = kept(tmp_path, asked, Budget(calls=100))
    with pytest.raises(BudgetError, match=r"would exceed calls \(64 of 100 used\)"):
        oracle.prefer([f"q{n}" for n in range(120)], ["a"] * 120, ["b"] * 120)
    assert len(asked.questions) == 64, "whole batches, the last of which would be beyond it"
    oracle.prefer([f"q{n}" for n in range(60)], ["a"] * 60, ["b"] * 60)
    assert len(asked.questions) == 64, "what is known costs nothing"


def test_rules_and_matrices_are_kept_where_asked(tmp_path: Path) -> None:
    (tmp_path / "game.json").write_text('{"responses": ["a", "b"], "preferences": [[0.5, 0.8], [0.2, 0.5]]}')
    for block in ({"kind": "rule", "rule": "shorter"}, {"kind": "matrix", "path": str(tmp_path / "game.json")}):
        for is_again in (False, True):
            accounts = Accounts(tmp_path)
            oracle = build_oracle({**block, "ledger": str(tmp_path / "own.sqlite")}, accounts=accounts)
            ask(oracle, ["x"], ["a"], ["b"])
            assert accounts.spent.hits == (2 if is_again else 0)
        assert Accounts(tmp_path).spent == Figures()
    assert not (tmp_path / "oracle.sqlite").exists()


def test_members_have_accounts_of_their_own_in_one_file(tmp_path: Path) -> None:
    """A panel of two judges and a noisy copy of the first, which is the same judge and costs nothing more."""
    with serve() as server:
        judge = {"kind": "judge", "model": "m", "base_url": server.url}
        members = {"one": judge, "noisy": {**judge, "flip": 0.25}, "other": {**judge, "model": "n", "ties": 0.1}}
        a = Accounts(tmp_path)
        panel = build_oracle({"kind": "panel", "members": members, "symmetrize": False}, accounts=a)
        answers = [ask(member, ["x"], ["aa"], ["b"]).item() for member in panel.members]  # type: ignore[attr-defined]
        assert answers == [1.0, 0.75, 1.0]
        assert sorted(body["model"] for body in server.requests) == ["m", "n"]
        crowd = build_oracle({"kind": "mixture", "members": [judge, members["noisy"]], "verdict_seed": 0}, accounts=a)
        assert ask(crowd, ["x"], ["aa"], ["b"]).item() in (0.0, 1.0)
        assert len(server.requests) == 3, "the mixture asks in both orders, one of which is known"
    summary = a.summary()
    assert [entry["oracle"] for entry in summary] == ["judge m", "judge n"]
    assert [entry["calls"] for entry in summary] == [2, 1]
    assert [path.name for path in tmp_path.glob("*.sqlite")] == ["oracle.sqlite"]


# Several processes, and none -----------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from alignment.oracles import Accounts, ask, build_oracle
url, folder = sys.argv[1:]
block = {"kind": "judge", "model": "m", "base_url": url, "concurrency": 4, "budget": {"calls": 1000}}
ask(build_oracle(block, accounts=Accounts(Path(folder))), [f"q{n}" for n in range(10)], ["aa"] * 10, ["b"] * 10)
"""


def start(server_url: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", SCRIPT, server_url, str(folder)], cwd=ROOT, text=True)


@pytest.mark.slow
def test_a_killed_run_pays_for_nothing_twice(tmp_path: Path) -> None:
    """SIGKILL with 7 of 20 answered and 4 in flight; the next run asks the 13 others once, and none of the 7."""
    lock, released, answered = threading.Lock(), threading.Event(), []

    def script(body: dict[str, Any]) -> Reply:
        with lock:
            is_answered = released.is_set() or len(answered) < 7
            if is_answered:
                answered.append(str(body["messages"]))
        reply = prefers_longer(body)
        return reply if is_answered else Reply(body=reply.body, after=released)

    with serve(script) as server:
        process = start(server.url, tmp_path)
        try:
            wait_for(lambda: stored(tmp_path) == 7 and len(server.requests) == 11)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        first = list(answered)
        released.set()
        server.requests.clear()
        assert start(server.url, tmp_path).wait(120) == 0
        again = [str(body["messages"]) for body in server.requests]
    assert len(again) == 13 and not set(again) & set(first) and len({*again, *first}) == 20
    with sqlite3.connect(tmp_path / "oracle.sqlite") as file:
        assert file.execute("SELECT calls, questions FROM spending").fetchall() == [(24, 27)], "20, and 4 in flight"


def stored(folder: Path) -> int:
    path = folder / "oracle.sqlite"
    if not path.exists():
        return 0
    with sqlite3.connect(path, timeout=10) as file:
        has_table = file.execute("SELECT name FROM sqlite_master WHERE name = 'verdicts'").fetchone()
        return int(file.execute("SELECT count(*) FROM verdicts").fetchone()[0]) if has_table else 0


def wait_for(condition: Any) -> None:
    """At most two minutes."""
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to this")


@pytest.mark.slow
def test_processes_share_a_file(tmp_path: Path) -> None:
    """Three at once, from the moment that the file is made: all answer, and the file holds each verdict once."""
    with serve() as server:
        processes = [start(server.url, tmp_path) for _ in range(3)]
        assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert stored(tmp_path) == 20
    with sqlite3.connect(tmp_path / "oracle.sqlite") as file:
        ((calls, questions),) = file.execute("SELECT calls, questions FROM spending").fetchall()
    assert calls == len(server.requests) and questions == 60


def test_threads_and_connections_share_a_budget(tmp_path: Path) -> None:
    """Eight threads on two connections reserve 50 of a budget of 30 calls: exactly 30 succeed."""
    accounts = [Accounts(tmp_path), Accounts(tmp_path)]
    opened = [item.open({"kind": "test"}, ledger=True, budget=Budget(calls=30)) for item in accounts]
    allowed: list[bool] = []

    def work(place: int) -> None:
        account = opened[place % 2]
        for _ in range(50 // 8 + 1):
            allowed.append(account.ledger.add(account.run, account.oracle, Figures(calls=1), account.budget))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 30 == opened[0].spent.calls


def test_what_is_reserved_counts_until_it_is_settled(tmp_path: Path) -> None:
    """A second call waits for the first to say that it cost less than it might have."""
    account = Accounts(tmp_path).open({"kind": "test"}, ledger=True, budget=Budget(tokens=100))
    most, actual = Figures(calls=1, prompt_tokens=60), Figures(calls=1, prompt_tokens=30)
    account.reserve(most)
    waiting = threading.Thread(target=account.reserve, args=(most,))
    waiting.start()
    assert waiting.is_alive()
    account.settle(most, actual)
    waiting.join(10)
    assert not waiting.is_alive() and account.spent.tokens == 90
    account.settle(most, actual)
    with pytest.raises(BudgetError, match=r"tokens \(60 of 100 used\); raise budget\.tokens"):
        account.reserve(most)


def test_a_run_that_moves_keeps_its_account(tmp_path: Path) -> None:
    account = Accounts(tmp_path / "runs").open({"kind": "test"}, ledger=True)
    account.add(Figures(calls=3))
    account.store([("key", Question("x", "a", "b"), Verdict(0.25))])
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = Accounts(tmp_path / "moved").open({"kind": "test"}, ledger=True)
    assert moved.spent.calls == 3 and moved.find(["key", "other"]) == {"key": Verdict(0.25)}
    shared = str(tmp_path / "shared.sqlite")
    one, other = (Accounts(tmp_path / name).open({"kind": "test"}, ledger=shared) for name in ("a", "b"))
    one.add(Figures(calls=2))
    assert (one.spent.calls, other.spent.calls) == (2, 0), "a file shared by runs has a page for each"


# Promises ------------------------------------------------------------------------------------------------------------


def test_exact_oracles_are_held_to_their_promise() -> None:
    """A rule and a matrix that say .7 in both orders; another oracle may, and is averaged."""
    quoted = r"add up to 1, got 0\.7 \+ 0\.7 for prompt 'Why\?', left 'a', right 'b'; correct the oracle"
    for oracle in (
        RuleOracle(lambda prompt, left, right: 0.7),
        MatrixOracle(torch.full((1, 2, 2), 0.7), responses=["a", "b"]),
    ):
        with pytest.raises(UserError, match=quoted):
            ask(oracle, ["Why?"], ["a"], ["b"])
    assert ask(Counting(), ["Why?"], ["a"], ["b"]).item() == pytest.approx(0.5)


def always_first(prompt: str, left: str, right: str) -> float:
    return 0.7


def broken(prompt: str, left: str, right: str) -> float:
    return {"nan": float("nan"), "1.2": 1.2}[prompt]


def test_rules_of_a_recipe_are_checked_too(tmp_path: Path) -> None:
    here = "tests.oracles.test_ledger"
    block = {"kind": "rule", "rule": f"{here}:always_first"}
    with pytest.raises(UserError, match=r"got 0\.7 \+ 0\.7 .*symmetrize: false"):
        ask(build_oracle({**block, "flip": 0.1}), ["x"], ["a"], ["b"])
    answer = ask(build_oracle({**block, "symmetrize": False}), ["x"], ["a"], ["b"]).item()
    assert answer == pytest.approx(0.7) or answer == pytest.approx(0.3)
    for prompt in ("nan", "1.2"):
        for keys in ({}, {"symmetrize": False}, {"ledger": str(tmp_path / "oracle.sqlite")}):
            for _ in range(2):
                with pytest.raises(UserError, match=rf"expected a probability in \[0, 1\], got {prompt} for prompt"):
                    ask(build_oracle({"kind": "rule", "rule": f"{here}:broken", **keys}), [prompt], ["a"], ["b"])
    assert stored(tmp_path) == 0


def test_several_processes_share_no_budget_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    Accounts(tmp_path).open({"kind": "test"}, ledger=False)
    Accounts(tmp_path).open({"kind": "test"}, ledger=True, budget=Budget(calls=3))
    with pytest.raises(UserError, match=r"expected a file for a budget that 2 processes share"):
        Accounts(tmp_path).open({"kind": "test"}, ledger=False, budget=Budget(calls=3))
