"""Judges over HTTP: what a reply means, and what becomes of every failure on the way to it."""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.errors import BudgetError, UserError
from alignment.oracles import Accounts, ask, build_oracle
from alignment.oracles.judge import Judge, Patience, Request, connect
from alignment.oracles.kept import KeptOracle
from alignment.oracles.templates import PAIR_TEMPLATE
from alignment.oracles.verdicts import ArenaHardReader, LabelReader, LogprobReader
from tests.oracles.server import Reply, Server, answers_shown, in_turn, prefers_longer, says, serve

KEY = "sk-very-secret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serve() as running:
        yield running


def spec(server: Server, **keys: Any) -> dict[str, Any]:
    block = {"kind": "judge", "model": "m", "base_url": server.url, "api_key_env": "JUDGE_KEY", "backoff": 0.0}
    return {**block, "timeout": 5.0, **keys}


def one(server: Server, **keys: Any) -> float:
    """What the judge says of a longer answer against a shorter one."""
    return ask(build_oracle(spec(server, **keys)), ["Why?"], ["longer"], ["short"]).item()


# What is asked -------------------------------------------------------------------------------------------------------


def test_a_question_is_asked_in_both_orders_and_only_once(server: Server, tmp_path: Path) -> None:
    """Three questions, two of them equal, and one of equal answers: 2 x 2 requests; asked again, none."""
    accounts = Accounts(tmp_path)
    oracle = build_oracle(spec(server, prices={"prompt": 2.0, "completion": 10.0}), accounts=accounts)
    texts = ["x", "x", "y", "z"], ["aa", "aa", "a", "b"], ["a", "a", "aaa", "b"]
    assert ask(oracle, *texts).tolist() == [1.0, 1.0, 0.0, 0.5]
    assert sorted(server.asked()) == [("a", "aa"), ("a", "aaa"), ("aa", "a"), ("aaa", "a")]
    assert server.requests[0]["temperature"] == 0 and server.requests[0]["max_tokens"] == 16
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert ask(oracle, *texts).tolist() == [1.0, 1.0, 0.0, 0.5] and len(server.requests) == 4
    spent = accounts.spent
    assert (spent.questions, spent.hits, spent.calls, spent.retries) == (8, 4, 4, 0)
    assert (spent.prompt_tokens, spent.completion_tokens) == (400, 4)
    assert spent.money == pytest.approx((400 * 2 + 4 * 10) / 1e6)
    assert spent.seconds > 0 and spent.inconsistency == 0 and spent.pairs == 8


def test_a_taste_for_a_position_averages_out_and_is_reported(server: Server) -> None:
    server.script = lambda body: says("A")
    accounts = Accounts()
    oracle = build_oracle(spec(server), accounts=accounts)
    assert ask(oracle, ["x"], ["a"], ["b"]).item() == 0.5
    assert accounts.spent.as_numbers()["inconsistency"] == 1.0
    assert "orders inconsistent by 1.0000" in accounts.spent.describe()


def test_one_order_is_drawn_by_the_question(server: Server) -> None:
    """Half the requests; the question turned round has the opposite answer from the same request; both orders occur."""
    server.script = lambda body: says("A")
    oracle = build_oracle(spec(server, symmetrize=False))
    prompts, left, right = [f"q{n}" for n in range(25)], ["a"] * 25, ["b"] * 25
    forward_N = ask(oracle, prompts, left, right)
    assert len(server.requests) == 25
    assert (forward_N + ask(oracle, prompts, right, left)).tolist() == [1.0] * 25
    assert len(server.requests) == 25, "the same 25 requests answer both"
    assert 3 <= forward_N.sum().item() <= 22, "a fair coin, 4 standard deviations"
    assert ask(build_oracle(spec(server, symmetrize=False)), prompts, left, right).equal(forward_N)


def test_requests_run_at_once_and_no_more_than_allowed(server: Server) -> None:
    """The script waits until three requests are there: one at a time would never get on; a fourth is never there."""
    together, lock, running, peak = threading.Barrier(3, timeout=10), threading.Lock(), [0], [0]

    def script(body: dict[str, Any]) -> Reply:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        together.wait()
        with lock:
            running[0] -= 1
        return prefers_longer(body)

    server.script = script
    oracle = build_oracle(spec(server, concurrency=3, symmetrize=False))
    assert ask(oracle, [f"q{n}" for n in range(9)], ["aa"] * 9, ["b"] * 9).tolist() == [1.0] * 9
    assert peak[0] == 3


# What a reply means --------------------------------------------------------------------------------------------------


def text(content: str | None) -> Any:
    return SimpleNamespace(message=SimpleNamespace(content=content), logprobs=None)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("A", 1.0), (" B.", 0.0), ("**A** is better than B", 1.0), ("Answer B", 0.0), ("Best: AB", None), ("", None)],
)
def test_the_first_label_that_stands_alone(reply: str, expected: float | None) -> None:
    assert LabelReader(["A", "B"]).read(text(reply)) == expected


def test_a_label_may_hold_another_one() -> None:
    """The longer one is meant: a tie is written with both letters."""
    reader = LabelReader(["A", "B", "A=B"])
    assert [reader.read(text(reply)) for reply in ("A=B", "A", "B. It is not A=B")] == [0.5, 1.0, 0.0]


def test_a_pattern_finds_the_label() -> None:
    """MT-Bench's form, with a tie; what the pattern finds that is no label is no verdict."""
    reader = LabelReader(["A", "B", "C"], r"\[\[(\w)\]\]")
    assert [reader.read(text(reply)) for reply in ("B? No: [[A]]", "[[C]]", "[[D]]", "A")] == [1.0, 0.5, None, None]
    assert LabelReader(["1", "2"], r"\d$").read(text("Of 1 and 2: 2")) == 0.0
    assert LabelReader(["A", "B"]).read(text(None)) is None


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        # AlpacaEval 2 codes the preference as 2 - p_m / (p_m + p_M), 1 where the first one shown wins.
        ({"m": math.log(0.6), "M": math.log(0.2), "x": math.log(0.1)}, 0.75),
        ({"m": math.log(0.3), " m": math.log(0.3), "M": math.log(0.2)}, 0.75),
        ({"M": math.log(0.2), "x": math.log(0.1)}, 0.0),
        ({"x": math.log(0.9)}, None),
    ],
)
def test_the_share_of_the_labels_probability(server: Server, top: dict[str, float], expected: float | None) -> None:
    choice = SimpleNamespace(
        logprobs=SimpleNamespace(
            content=[SimpleNamespace(top_logprobs=[SimpleNamespace(token=t, logprob=p) for t, p in top.items()])]
        )
    )
    read = LogprobReader(["m", "M"], top=5).read(choice)
    assert read == (None if expected is None else pytest.approx(expected))
    # The same through HTTP: the judge says it of whatever stands first, and one order is asked.
    server.script = lambda body: says("m", top=top)
    oracle = build_oracle(spec(server, verdict="logprobs", labels=["m", "M"], symmetrize=False))
    answer = ask(oracle, ["x"], ["a"], ["b"]).item()
    of_first = 0.5 if expected is None else expected
    assert answer == pytest.approx(of_first if answers_shown(server.requests[0])[0] == "a" else 1.0 - of_first)
    assert server.requests[0]["logprobs"] is True and server.requests[0]["top_logprobs"] == 5
    assert server.requests[0]["max_tokens"] == 1


def test_a_server_without_log_probabilities_is_no_judge_of_them(server: Server) -> None:
    with pytest.raises(UserError, match="expected log-probabilities of the reply's first token, found none"):
        one(server, verdict="logprobs")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("[[A>>B]]", 1.0),
        ("[[A>B]]", 2 / 3),
        ("[[A=B]]", 0.5),
        ("[[B>A]]", 1 / 3),
        ("First I thought [[A>>B]], but: [[B>>A]]", 0.0),
        ("A>B", None),
        ("[[A<B]]", None),
    ],
)
def test_the_last_verdict_of_arena_hard(reply: str, expected: float | None) -> None:
    """Arena-Hard counts a strong verdict three times: 1 - 1/2 = 3 (2/3 - 1/2)."""
    assert ArenaHardReader().read(text(reply)) == (None if expected is None else pytest.approx(expected))
    assert ArenaHardReader({"A>B": 0.9}).read(text("[[A>B]]")) == 0.9


def test_arena_hard_over_http(server: Server) -> None:
    """Slightly for what stands first, then strongly against it: (2/3 + 1 - 0) / 2."""
    server.script = lambda body: says("[[A>B]]" if "A>\nlonger\n" in body["messages"][0]["content"] else "[[B>>A]]")
    assert one(server, verdict="arena_hard") == pytest.approx(5 / 6)
    assert server.requests[0]["max_tokens"] == 2048


# Failures ------------------------------------------------------------------------------------------------------------

PASSING = {
    "429": Reply(status=429, body={"error": {"message": "slow down"}}, headers={"retry-after": "0"}),
    **{str(status): Reply(status=status, body={"error": {"message": "oh"}}) for status in (500, 502, 503, 504)},
    "dropped": Reply(body=None),
    "malformed": Reply(body='{"choices": [{"mess'),
    "html": Reply(body="<html>", headers={"content-type": "text/html"}),
    "no choices": Reply(body={"choices": []}),
    "another form": Reply(body={"hello": "world"}),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again(server: Server, name: str) -> None:
    """One failure, then answers: the verdict is right, and the failure is counted: without tokens where the server
    refused the request, in full where it may have billed it."""
    server.script = in_turn([PASSING[name], *[says("A")] * 2])
    accounts = Accounts()
    answer = ask(build_oracle(spec(server, symmetrize=False), accounts=accounts), ["x"], ["a"], ["b"]).item()
    assert answer == (1.0 if server.asked()[0] == ("a", "b") else 0.0)
    assert len(server.requests) == 2
    assert (accounts.spent.calls, accounts.spent.retries, accounts.spent.questions) == (2, 1, 1)
    of_failure = accounts.spent.tokens - 101
    assert of_failure == 0 if name.isdigit() else of_failure > len(str(server.requests[0]["messages"][0]["content"]))


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "it does not accept such requests"),
        (401, "check the key that api_key_env names"),
        (403, "check what the key"),
        (404, "check model and base_url"),
        (422, "it does not accept such requests"),
    ],
)
def test_what_will_not_pass_is_one_line_at_once(server: Server, status: int, advice: str) -> None:
    """No second try, and the key, which this server repeats, is not shown."""
    server.script = lambda body: Reply(status=status, body={"error": {"message": f"no,\nnot with {KEY}"}})
    with pytest.raises(UserError, match=rf"expected a reply from the judge 'm' at .*, found {status}: .*{advice}") as e:
        one(server, concurrency=1)
    assert len(server.requests) == 1
    assert KEY not in str(e.value) and "***" in str(e.value) and "\n" not in str(e.value)


def test_a_failure_that_stays_ends_the_run_and_keeps_what_was_answered(server: Server, tmp_path: Path) -> None:
    """Of two questions one never gets a reply: three tries, then an error; run again, only that one is asked."""
    server.script = lambda body: Reply(status=500, body={}) if "bad" in str(body) else prefers_longer(body)
    texts = ["x", "x"], ["good", "bad"], ["a", "b"]
    keys = {"retries": 2, "symmetrize": False, "concurrency": 1}
    with pytest.raises(UserError, match=r"found none in 3 tries \(the last: 500: .*all verdicts so far are kept"):
        ask(build_oracle(spec(server, **keys), accounts=Accounts(tmp_path)), *texts)
    assert len(server.requests) == 4
    server.script = prefers_longer
    assert ask(build_oracle(spec(server, **keys), accounts=Accounts(tmp_path)), *texts).tolist() == [1.0, 1.0]
    assert len(server.requests) == 5 and "bad" in str(server.requests[4])


def test_a_server_that_is_not_there(server: Server) -> None:
    """Nothing was sent, so nothing of the budget is gone."""
    accounts = Accounts()
    with serve() as gone:
        pass
    oracle = build_oracle(spec(gone, retries=1, budget={"calls": 5}), accounts=accounts)
    with pytest.raises(UserError, match=r"found none in 2 tries \(the last: it cannot be reached"):
        ask(oracle, ["x"], ["a"], ["b"])
    assert accounts.spent.calls == 0 and accounts.spent.tokens == 0


def made_by_hand(server: Server, pause: Callable[[float], object], **patience: Any) -> KeptOracle:
    client = connect(server.url, key="", timeout=5.0)
    account = Accounts().open({"kind": "judge", "model": "m"}, ledger=False)
    judge = Judge(
        client,
        request=Request(model="m", template=PAIR_TEMPLATE, temperature=0.0, max_tokens=1),
        reader=LabelReader(["A", "B"]),
        account=account,
        patience=Patience(**{"retries": 4, "backoff": 1.0, "concurrency": 1, "second_try": False} | patience),
        pause=pause,
    )
    return KeptOracle(judge, account, unparsable="tie", max_unparsable=1.0)


def test_a_reply_that_is_too_late_is_not_waited_for(server: Server) -> None:
    """The first reply is held back until the client has given it up; it may have been billed, so it counts in full."""
    held = threading.Event()
    server.script = in_turn([Reply(body="late", after=held), says("A")])

    def pause(seconds: float) -> None:
        held.set()
        oracle.asker.client = oracle.asker.client.with_options(timeout=5.0)  # type: ignore[attr-defined]

    oracle = made_by_hand(server, pause)
    oracle.asker.client = oracle.asker.client.with_options(timeout=0.1)  # type: ignore[attr-defined]
    assert oracle.prefer(["x"], ["a"], ["b"]).item() == 1.0
    spent = oracle.account.spent
    assert (spent.calls, spent.retries, len(server.requests)) == (2, 1, 2)
    text = server.requests[0]["messages"][0]["content"]
    assert (spent.prompt_tokens, spent.completion_tokens) == (len(text) + 64 + 100, 1 + 1)


def test_waits_grow_and_a_server_may_ask_for_more(server: Server) -> None:
    """Backoff 1: between half and the whole of 1, 2, 4, 8 seconds, but at least the 7 that the server asks for once."""
    failure = Reply(status=503, body={})
    server.script = in_turn(
        [failure, Reply(status=429, body={}, headers={"retry-after": "7"}), *[failure] * 2, says("A")]
    )
    waits: list[float] = []
    assert made_by_hand(server, waits.append).prefer(["x"], ["a"], ["b"]).item() == 1.0
    assert 0.5 <= waits[0] <= 1.0 and waits[1] == 7.0 and 2.0 <= waits[2] <= 4.0 and 4.0 <= waits[3] <= 8.0


def test_a_server_that_asks_for_hours_is_not_waited_for(server: Server) -> None:
    server.script = lambda body: Reply(status=429, body={}, headers={"retry-after": "7200"})
    with pytest.raises(UserError, match="asks to wait 7,200 seconds"):
        made_by_hand(server, lambda seconds: pytest.fail("waited")).prefer(["x"], ["a"], ["b"])
    assert len(server.requests) == 1


def test_one_failure_ends_the_waiting_of_the_others(server: Server) -> None:
    """A question waits a minute for its next try; another one fails for good: the run ends now."""
    has_failed = threading.Event()

    def script(body: dict[str, Any]) -> Reply:
        if "fatal" in str(body):
            has_failed.wait(10)
            return Reply(status=400, body={})
        has_failed.set()
        return Reply(status=503, body={}, headers={"retry-after": "60"})

    server.script = script
    with pytest.raises(UserError, match="found 400"):
        ask(build_oracle(spec(server, symmetrize=False)), ["x", "fatal"], ["a", "a"], ["b", "b"])


# Replies without a verdict -------------------------------------------------------------------------------------------


def test_an_unparsable_reply_is_a_counted_tie(server: Server) -> None:
    server.script = in_turn([says("I cannot choose."), says("A")])
    accounts = Accounts()
    oracle = build_oracle(spec(server, concurrency=1), accounts=accounts)
    answer = ask(oracle, ["x"], ["a"], ["b"]).item()
    assert answer == 0.25, "(1/2 + 1 - 1) / 2: a tie, then the second one shown first wins"
    assert accounts.spent.unparsable == 1 and "1 unparsable" in accounts.spent.describe()
    ask(oracle, ["x"], ["a"], ["b"])
    assert accounts.spent.unparsable == 2 and len(server.requests) == 2, "used again, counted again, not asked again"


def test_an_unparsable_reply_is_asked_for_once_more(server: Server) -> None:
    server.script = in_turn([says("Hm."), says("A"), says("Hm."), says("Well."), says("A")])
    accounts = Accounts()
    oracle = build_oracle(spec(server, unparsable="retry", concurrency=1), accounts=accounts)
    assert ask(oracle, ["x"], ["a"], ["b"]).item() == 0.75
    assert (accounts.spent.calls, accounts.spent.unparsable) == (4, 1)


def test_an_unparsable_reply_may_be_an_error(server: Server) -> None:
    server.script = lambda body: says("Hm.")
    with pytest.raises(UserError, match=r"oracle\.unparsable: expected a verdict .* reply without one on .*'longer'"):
        one(server, unparsable="error", concurrency=1)


def test_too_many_unparsable_replies_stop_the_run(server: Server, tmp_path: Path) -> None:
    """At most a tenth, of at least twenty: the third one is too many. A larger share goes on from there."""
    server.script = lambda body: says("Hm.")
    questions = [f"q{n}" for n in range(10)], ["a"] * 10, ["b"] * 10
    with pytest.raises(UserError, match=r"share of at most 0\.1 .* found 3 of 3"):
        ask(build_oracle(spec(server, concurrency=1), accounts=Accounts(tmp_path)), *questions)
    assert len(server.requests) == 3
    oracle = build_oracle(spec(server, concurrency=1, max_unparsable=1.0), accounts=Accounts(tmp_path))
    assert ask(oracle, *questions).tolist() == [0.5] * 10 and len(server.requests) == 20


def test_an_answer_without_text_is_asked_about_and_counted(server: Server) -> None:
    accounts = Accounts()
    assert ask(build_oracle(spec(server), accounts=accounts), ["x"], ["a"], [""]).item() == 1.0
    assert accounts.spent.empty == 2 and "2 with an empty answer" in accounts.spent.describe()


# Budgets -------------------------------------------------------------------------------------------------------------

TEN = [f"q{n}" for n in range(10)], ["aa"] * 10, ["b"] * 10


def test_calls_end_at_the_budget_and_go_on_from_there(server: Server, tmp_path: Path) -> None:
    """Seven calls are made and no eighth; with a larger budget the other thirteen, in whatever order they came."""
    with pytest.raises(BudgetError, match=r"would exceed calls \(7 of 7 used\); raise budget\.calls and run again"):
        ask(build_oracle(spec(server, budget={"calls": 7}), accounts=Accounts(tmp_path)), *TEN)
    assert len(server.requests) == 7
    with pytest.raises(BudgetError):
        ask(build_oracle(spec(server, budget={"calls": 7}), accounts=Accounts(tmp_path)), *TEN)
    assert len(server.requests) == 7, "the budget is the run's, not the process's"
    oracle = build_oracle(spec(server, budget={"calls": 20}), accounts=Accounts(tmp_path))
    assert ask(oracle, *TEN).tolist() == [1.0] * 10
    assert len(server.requests) == 20 and len({str(body) for body in server.requests}) == 20


def test_a_retry_is_a_call(server: Server) -> None:
    server.script = lambda body: Reply(status=503, body={})
    with pytest.raises(BudgetError):
        one(server, budget={"calls": 3}, concurrency=1)
    assert len(server.requests) == 3


@pytest.mark.parametrize("concurrency", [1, 8])
def test_tokens_and_money_end_before_they_are_exceeded(server: Server, concurrency: int) -> None:
    """A call costs 101 tokens and is reserved with more; what is reserved is waited for, so little is left unused."""
    for budget in ({"tokens": 1200}, {"money": 0.0012}):
        accounts, before = Accounts(), len(server.requests)
        prices = {"prompt": 1.0, "completion": 1.0}
        oracle = build_oracle(
            spec(server, budget=budget, prices=prices, concurrency=concurrency, max_tokens=1), accounts=accounts
        )
        with pytest.raises(BudgetError, match=next(iter(budget))):
            ask(oracle, *TEN)
        spent = accounts.spent
        assert spent.tokens == 101 * (len(server.requests) - before) <= 1200
        assert 1200 - spent.tokens < len(PAIR_TEMPLATE) + 64 + 101, "no room for another call"


def test_a_server_that_counts_no_tokens_is_counted_at_the_most(server: Server) -> None:
    server.script = lambda body: says("A", usage=None)
    accounts = Accounts()
    ask(build_oracle(spec(server, symmetrize=False), accounts=accounts), ["x"], ["a"], ["b"])
    text = server.requests[0]["messages"][0]["content"]
    assert accounts.spent.prompt_tokens == len(text) + 64 and accounts.spent.completion_tokens == 16


# Bad blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"budget": {"calls": 0}}, r"oracle\.budget\.calls: input should be greater than 0, got 0"),
        ({"budget": {"money": -1.0}, "prices": {"prompt": 1, "completion": 1}}, r"oracle\.budget\.money: .*greater"),
        ({"budget": {"tokens": 0}}, r"oracle\.budget\.tokens: input should be greater than 0"),
        ({"budget": {}}, r"oracle\.budget: expected calls, tokens or money, got none"),
        ({"budget": {"call": 3}}, r"unknown key 'budget\.call' for kind 'judge'; did you mean 'budget\.calls'\?"),
        ({"budget": {"money": 1.0}}, "expected prices with budget.money"),
        ({"base_url": "localhost:8000"}, "expected a base_url such as"),
        ({"base_url": "http://user:secret@host/v1"}, "expected a base_url without a secret"),
        ({"verdict": "logprobs", "pattern": "x"}, "expected only labels, top_logprobs with verdict: logprobs, got"),
        ({"labels": ["A", "A"]}, "expected labels that differ"),
        ({"verdict": "logprobs", "labels": ["A", "B", "C"]}, "expected two labels"),
        ({"pattern": "("}, "expected a regular expression as pattern"),
        ({"verdict": "arena_hard", "probabilities": {"A>B": 1.5}}, r"expected probabilities in \[0, 1\]"),
        ({"api_key_env": "NO_SUCH_KEY"}, "expected the key in the environment variable NO_SUCH_KEY, found it unset"),
        ({"template": "missing.txt"}, r"oracle\.template: expected a file, got 'missing\.txt'"),
    ],
)
def test_mistakes_in_the_block(server: Server, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_oracle(spec(server, **keys))
    assert "secret" not in str(error.value).replace("without a secret", "")


def test_without_the_client_the_extra_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match=r"needs the openai client.*pip install 'nash-alignment\[judge\]'"):
        build_oracle(spec(server))
