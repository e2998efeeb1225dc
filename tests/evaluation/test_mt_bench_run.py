"""MT-Bench from answers to figures: numbers worked out by hand, FastChat's files, nothing that is paid for twice."""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment import answering
from alignment.cli import main
from alignment.config.evaluation import MTBenchRecipe, load_evaluation_recipe
from alignment.data import EncodedRow
from alignment.errors import UserError
from alignment.evaluation import scoring
from alignment.evaluation.manifests import read_manifest
from alignment.evaluation.mt_bench_files import REFERENCED, read_questions
from alignment.mt_bench import MTBenchResult, evaluate_mt_bench
from alignment.tiny import tiny_model, tiny_tokenizer
from tests.generation.http_stand_in import ScriptedServer, serving
from tests.oracles.server import Reply, Server, says, serve

CATEGORIES = ("math", "math", "writing", "writing")
# A grade stands at the end of each answer; 0 has the judge talk nonsense.
MINE = (("one 8", "two 4"), ("one 6", "two 0"), ("one 5", "two 9"), ("same 3", "two 7"))
BASE = (("one 2", "two 5"), ("one 6", "two 1"), ("one 0", "two 2"), ("same 3", "two 6"))


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer_lines(answers: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    return [
        {"question_id": 81 + n, "model_id": "any", "choices": [{"index": 0, "turns": list(texts)}]}
        for n, texts in enumerate(answers)
    ]


def grade_of(answer: str) -> int:
    return int(answer.rsplit(maxsplit=1)[1])


def judge(body: Mapping[str, Any]) -> Reply:
    """Says the grade that stands in an answer; of two the better one, or of equal ones the one shown first."""
    text = body["messages"][0]["content"]
    if alone := re.search(r"<answer to be graded>\n(.*)\n</answer", text, flags=re.DOTALL):
        return says(f"[[{grade_of(alone[1])}]]" if grade_of(alone[1]) else "it has merits")
    first, second = (grade_of(said) for said in re.findall(r"<assistant .>\n(.*?)\n</assistant", text, re.DOTALL))
    return says("both have merits" if 0 in (first, second) else "[[A]]" if first >= second else "[[B]]")


def files(folder: Path) -> dict[str, Any]:
    """The first four of 80 questions, answered by two files."""
    rows = [
        {"question_id": 81 + n, "category": CATEGORIES[n % 4], "turns": [f"First {n}?", f"Second {n}?"]}
        for n in range(80)
    ]
    return {
        "policies": {
            name: {"outputs": str(write_lines(folder / f"{name}.jsonl", answer_lines(answers)))}
            for name, answers in (("mine", MINE), ("base", BASE))
        },
        "opponents": ["base"],
        "prompts": {"path": str(write_lines(folder / "question.jsonl", rows)), "set": "mt_bench", "limit": 4},
        "judge": {
            "model": "org/judge",
            "base_url": "http://127.0.0.1:9/v1",
            "backoff": 0.0,
            "retries": 0,
            "max_unparsable": 0.5,
        },
        "output_dir": str(folder / "out"),
    }


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return files(tmp_path)


def run(tree: Mapping[str, Any], server: Server | None = None, *overrides: str) -> MTBenchResult:
    path = Path(tree["output_dir"]).with_name("mt_bench.yaml")
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False))
    to_judge = () if server is None else (f"judge.base_url={server.url}",)
    recipe = load_evaluation_recipe(path, (*to_judge, *overrides)).recipe
    assert isinstance(recipe, MTBenchRecipe)
    return evaluate_mt_bench(recipe, progress=lambda *_: None)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[MTBenchResult, list[str]]:
    """Both files graded and compared, twice over, and what the judge was asked."""
    folder = tmp_path_factory.mktemp("mt_bench")
    tree = files(folder)
    references = answer_lines([(f"reference {n} one", f"reference {n} two") for n in range(80)])
    tree["prompts"]["references"] = str(write_lines(folder / "references.jsonl", references))
    with serve(judge) as server:
        found = run(tree, server)
        texts = [body["messages"][0]["content"] for body in server.requests]
        assert run(tree, server).to_json() == found.to_json()
        assert len(server.requests) == len(texts), "nothing is asked twice"
    return found, texts


def test_numbers_worked_out_by_hand(judged: tuple[MTBenchResult, list[str]]) -> None:
    """mine: first turns 8, 6, 5, 3; second ones 4, none, 9, 7: means 5.5 and 20/3, and 6 over all seven.

    Compared by turn: 8 > 2, the same text (a tie), nonsense, the same text; then 4 < 5, nonsense, 9 > 2, 7 > 6. So 3
    wins, 1 loss, 2 ties, 2 dropped: (3 + 1) / 6. Nobody is asked about the same texts, and of the same answer once: 16
    - 2 grades and 2 (8 - 2) comparisons.
    """
    found, texts = judged
    assert len(texts) == 14 + 12
    mine = next(one for one in found.graded if one.score.model == "mine")
    assert (mine.score.turn_1, mine.score.turn_2, mine.score.average) == pytest.approx((5.5, 20 / 3, 6.0))
    assert (mine.score.n_rated, mine.score.n_dropped) == (7, 1)
    assert {name: part.average for name, part in mine.categories.items()} == {"math": 6.0, "writing": 6.0}
    (pair,) = found.compared
    assert (pair.score.n_wins, pair.score.n_losses, pair.score.n_ties, pair.score.n_dropped) == (3, 1, 2, 2)
    assert pair.score.win_rate_adjusted == pytest.approx(100 * 4 / 6)
    turns = {turn: part.win_rate_adjusted for turn, part in pair.turns.items()}
    assert turns == pytest.approx({"1": 100 * 2 / 3, "2": 100 * 2 / 3})
    assert {name: part.n_wins for name, part in pair.categories.items()} == {"math": 1, "writing": 2}
    assert [note for note in found.notes if "1 replies of the judge had no grade" in note]
    assert not [note for note in found.notes if "reference" in note]

    alone = next(text for text in texts if "<answer to be graded>\ntwo 4\n" in text)
    assert "user: First 0?\nassistant: one 8\nuser: Second 0?\n" in alone
    assert "first message:\nreference 0 one\n\nReference answer to the second message:\nreference 0 two\n" in alone
    assert not any("reference 2" in text for text in texts), "writing has none"
    together = next(text for text in texts if "<assistant A>\nassistant: one 8\nuser: Second 0?\n" in text)
    assert "<assistant B>\nassistant: one 2\nuser: Second 0?\nassistant: two 5\n" in together


def test_the_files_are_fastchats_and_score_reads_the_same(judged: tuple[MTBenchResult, list[str]]) -> None:
    found, _ = judged
    folder = found.folder / "model_judgment"
    single = scoring.score("mt_bench", folder / "org_judge_single.jsonl")
    pair = scoring.score("mt_bench", folder / "org_judge_pair.jsonl", scoring.Options(baseline="base"))
    results = json.loads((found.folder / "results.json").read_text())
    assert results == json.loads(json.dumps(found.to_json()))
    for rows, scored in ((results["single"], single), (results["pairwise"], pair)):
        assert [{key: row[key] for key in scored.scores[0]} for row in rows] == [dict(row) for row in scored.scores]
    answers = [json.loads(line) for line in (found.folder / "model_answer" / "mine.jsonl").read_text().splitlines()]
    assert answers[0] == {
        "question_id": 81,
        "model_id": "mine",
        "choices": [{"index": 0, "turns": ["one 8", "two 4"]}],
    }
    record = json.loads((folder / "org_judge_pair.jsonl").read_text().splitlines()[0])
    assert (record["g1_winner"], record["g2_winner"]) == ("model_1", "model_1") and record["turn"] == 1
    assert record["g2_user_prompt"].index("one 2") < record["g2_user_prompt"].index("one 8")
    assert "mine vs base" in (found.folder / "report.html").read_text()
    assert read_manifest(found.folder)["judges"][0]["template"] != read_manifest(found.folder)["judges"][1]["template"]


def test_a_policy_that_is_its_opponent_is_not_asked_about(tree: dict[str, Any]) -> None:
    tree["policies"]["base"] = tree["policies"]["mine"]
    with serve(judge) as server:
        found = run(tree, server, "grades=false")
        assert not server.requests
    (pair,) = found.compared
    assert (pair.score.win_rate_adjusted, pair.score.n_ties) == (50.0, 8)
    assert any("so the rate is 50 and nobody was asked" in note for note in found.notes)


def test_a_judge_that_breaks_off_is_not_paid_twice(tree: dict[str, Any]) -> None:
    """It fails at the tenth question; what it said before stands in the ledger."""

    def breaks(body: Mapping[str, Any]) -> Reply:
        return Reply(status=401, body="who are you") if len(server.requests) == 10 else judge(body)

    with serve(breaks) as server:
        with pytest.raises(UserError, match="check the key"):
            run(tree, server, "judge.concurrency=1", "opponents=[]")
        server.script = judge
        found = run(tree, server, "opponents=[]")
        asked = [body["messages"][0]["content"] for body in server.requests]
    assert len(set(asked)) == len(asked) - 1 == 14
    assert len(found.graded) == 2 and not found.compared


def test_the_second_message_is_asked_after_the_first_answer(tree: dict[str, Any]) -> None:
    def chat(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        said = body["messages"]
        answer = f"answer {len(said)}"
        if len(said) == 3:
            assert said[1] == {"role": "assistant", "content": "answer 1"}
        choice = {"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        return 200, {"choices": [choice]}

    with serving(ScriptedServer(chat)) as policy, serve(judge) as server:
        served = {"server": {"base_url": policy.base_url, "model": "m"}}
        sampling = {"temperature": 0.7, "max_new_tokens": 16}
        found = run({**tree, "policies": {"mine": served}, "opponents": [], "sampling": sampling}, server)
    asked = [[turn["content"] for turn in body["messages"]] for _, body in policy.requests]
    assert sorted(asked[4:]) == [[f"First {n}?", "answer 1", f"Second {n}?"] for n in range(4)]
    assert (found.graded[0].score.turn_1, found.graded[0].score.turn_2) == (1.0, 3.0)


BAD: dict[str, str] = {
    "policies.mine.outputs={missing}": r"missing\.jsonl: expected an answer to each of 4 questions, found none to 1",
    "policies.mine.outputs={strange}": r"found 1 to others, first to question 7",
    "policies.mine.outputs={twice}": r"twice\.jsonl:5: expected a question once, found '81' also at twice\.jsonl:1",
    "policies.mine.outputs={torn}": r"torn\.jsonl:1: expected two texts in 'choices\[0\]\.turns', found \['one'\]",
    "prompts.path={missing}": "expected a column 'category'",
    "prompts.path={few}": "expected the 80 questions of mt_bench, found 1",
    "prompts.references={missing}": "expected a reference answer to question 84, found none",
    "opponents=[them]": "opponents: expected names among mine, base",
    "opponents=[] grades=false": "there is nothing to judge",
    "judge.grade_template={few}": r"oracle\.template: expected \{prompt\} once",
    "judge.api_key_env=NO_SUCH_KEY": "expected the key in the environment variable NO_SUCH_KEY",
    "judge.labels=[A]": "unknown key 'judge.labels'",
    "prompts.set=mtbench": "'mt_bench', got 'mtbench'",
    "oracle={kind: rule}": "unknown key 'oracle'",
    "sampling={temperature: 1.0, max_new_tokens: 4}": "got it with files of answers only",
}


@pytest.mark.parametrize("overrides", BAD)
def test_mistakes_are_found_before_anybody_is_asked(overrides: str, tree: dict[str, Any], tmp_path: Path) -> None:
    rows = answer_lines(MINE)
    files = {
        "missing": rows[:3],
        "twice": [*rows, rows[0]],
        "strange": [*rows, {**rows[0], "question_id": 7}],
        "torn": [{**rows[0], "choices": [{"turns": ["one"]}]}],
        "few": [{"question_id": 1, "category": "math", "turns": ["a", "b"]}],
    }
    named = {name: str(write_lines(tmp_path / f"{name}.jsonl", lines)) for name, lines in files.items()}
    if "references" in overrides:
        lines = (tmp_path / "question.jsonl").read_text().replace('"writing"', '"math"')
        (tmp_path / "question.jsonl").write_text(lines)
    filled = re.sub(r"\{(missing|twice|strange|torn|few)\}", lambda found: named[found[1]], overrides)
    split = filled.split() if filled.endswith("grades=false") else [filled]
    with pytest.raises(UserError, match=BAD[overrides]):
        run(tree, None, *split)
    assert not (tmp_path / "out" / "model_answer").exists()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there")
def test_a_missing_engine_is_said_first(tree: dict[str, Any], tmp_path: Path) -> None:
    served = {"mine": {"server": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}}
    sampling = {"temperature": 1.0, "max_new_tokens": 4, "engine": "vllm"}
    with pytest.raises(UserError, match="the engine 'vllm' needs the package 'vllm': expected the extra `vllm`"):
        run({**tree, "policies": served, "opponents": [], "sampling": sampling})
    assert not (tmp_path / "out").exists()


def test_the_command_prints_tables(tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mt_bench.yaml").write_text(yaml.safe_dump(tree))
    with serve(judge) as server, pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(tmp_path / "mt_bench.yaml"), f"judge.base_url={server.url}", "prompts.limit=1"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    assert re.search(r"^mine +8\.00 +4\.00 +6\.00 \[1\.00, 10\.00\] +2 +0$", out, re.MULTILINE)
    assert re.search(r"^mine +base +50\.0 \[0\.0, 100\.0\] +100\.0 +0\.0 +1 +1 +0 +0$", out, re.MULTILINE)
    assert "note: the first 1 of 80 questions" in err


@pytest.mark.slow
def test_a_model_reads_its_own_first_answer(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the chat template of its tokenizer; cut between the turns, the first answers are not sampled again."""
    tokenizer = tiny_tokenizer(["First 1? Second 2? answer"], vocab_size=300)
    model = tiny_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    answer, asked, most = answering.answered_chunks, [], [1]

    def counted(policy: Any, prompts: Sequence[EncodedRow], **options: Any) -> Any:
        if len(asked) == most[0]:
            raise KeyboardInterrupt
        asked.append([tokenizer.decode(item.prompt_ids) for item in prompts])
        return answer(policy, prompts, **options)

    monkeypatch.setattr(answering, "answered_chunks", counted)
    tree |= {"policies": {"mine": {"run": str(tmp_path / "model")}}, "opponents": []}
    tree["sampling"] = {"temperature": 1.0, "max_new_tokens": 6}
    with serve(lambda body: says("[[5]]")) as server:
        with pytest.raises(KeyboardInterrupt):
            run(tree, server)
        most[0] = 2
        found = run(tree, server)
    assert len(asked) == 2 and found.graded[0].score.average == 5.0
    rows = [json.loads(line) for line in (found.folder / "model_answer" / "mine.jsonl").read_text().splitlines()]
    for n, (text, row) in enumerate(zip(asked[1], rows, strict=True)):
        first = row["choices"][0]["turns"][0]
        turns = [{"role": "user", "content": f"First {n}?"}, {"role": "assistant", "content": first}]
        turns.append({"role": "user", "content": f"Second {n}?"})
        assert text == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert not list((found.folder / "model_answer").glob("*.partial.jsonl"))


def test_the_published_questions(real_data: Callable[[str], Path]) -> None:
    """Ten of each of eight categories."""
    found = read_questions(real_data("prompts/prompts_mt_bench_80.jsonl.gz"))
    assert set(Counter(question.category for question in found).values()) == {10}
    assert len(categories := {question.category for question in found}) == 8 and set(REFERENCED) < categories
    assert found[0].id == 81 and found[0].turns[1].startswith("Rewrite your previous response.")
