"""`alignment diagnose`: what it reads, and what it says of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.cli import main
from alignment.comparisons import diagnose
from alignment.errors import UserError
from alignment.games import cyclic

FindData = Callable[[str], Path]
PANDALM = (
    "systems=cmp_key",
    "columns={prompt: [instruction, input], label: [annotator1, annotator2, annotator3], "
    "responses: [response1, response2]}",
    "labels={1: left, 2: right, 0: tie}",
)
RPS = {"responses": ["paper", "stone", "scissors"], "preferences": [[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]]}


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def battles(wins_KK: Any, num_prompts: int) -> str:
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": f"p{p}", "model_a": f"m{i}", "model_b": f"m{j}", "winner": "ab"[int(rng.random() > wins_KK[i][j])]}
        for p in range(num_prompts)
        for i in range(len(wins_KK))
        for j in range(len(wins_KK))
        if i != j
    ]
    return lines(rows)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return call


def test_pandalm(real_data: FindData) -> None:
    """No circle among five models, 1.3 % cyclic energy by majority, 1.6, 3.5 and 1.3 % by annotator; agreement of
    .913, .929 and .918; a winner that nobody beats, so nothing to gain."""
    report = diagnose(str(real_data("preferences/pandalm_testset_v1.jsonl.gz")), PANDALM)
    found = report.systems
    assert found is not None and found.cyclic_energy is not None
    assert (report.num_judgements, report.num_prompts) == (2997, 170)
    assert found.circles == () and found.num_triples == 10 and found.kind == "bradley_terry"
    assert found.cyclic_energy.mean == pytest.approx(0.013, abs=5e-4)
    assert found.cyclic_energy.low == 0.0 and found.cyclic_energy.mean < found.cyclic_energy.high < 0.3
    assert list(report.energy_by_annotator.values()) == pytest.approx([0.016, 0.035, 0.013], abs=5e-4)
    assert [item.share for item in report.agreement] == pytest.approx([0.913, 0.929, 0.918], abs=5e-4)
    assert found.best == "llama-7b" and found.lottery is not None
    assert found.lottery.weights_K == pytest.approx([0, 0, 1, 0, 0], abs=1e-9)
    assert found.gain.high == 0.0 and report.sentence.startswith("No sign that a Nash method helps")


def test_pandalm_by_responses(real_data: FindData) -> None:
    """Without the systems each prompt is its own game: few have three responses that were all compared."""
    report = diagnose(str(real_data("preferences/pandalm_testset_v1.jsonl.gz")), PANDALM[1:])
    assert report.systems is None and report.prompts is not None and report.prompts.num_prompts == 25
    assert report.first_wins is not None and report.first_wins.low < 0.5 < report.first_wins.high
    assert report.longer_wins is not None and report.longer_wins.low > 0.5


def test_a_planted_circle_is_found_in_a_file(tmp_path: Path, run: Callable[..., str]) -> None:
    path = write(tmp_path / "b.jsonl", battles(cyclic(3, strength=0.6, tau=0.0).prefs_XAA[0], 100))
    out = run("diagnose", path, "systems=[model_a, model_b]")
    assert out.startswith("A Nash method can help: a Bradley-Terry reward settles on m")
    assert re.search(r"m0 > m1 > m2 > m0: in 100% of tables drawn around this, surely", out)
    assert "listed first wins: 0.4" in out
    tree = json.loads(run("diagnose", path, "systems=[model_a, model_b]", "--json"))
    assert tree["systems"]["kind"] == "cyclic" and tree["systems"]["gain"]["low"] > 0.15
    assert tree["first_wins"]["low"] < 0.5 < tree["first_wins"]["high"]


@pytest.mark.parametrize("form", ["json", "oracle", "yaml", "mixture"])
def test_known_tables(tmp_path: Path, form: str) -> None:
    """A file, an oracle on the command line, an oracle in YAML; and a crowd of two that takes the edge off."""
    path = write(tmp_path / "rps.json", RPS)
    block = f"{{kind: matrix, path: {path}}}"
    report = {
        "json": lambda: diagnose(path, []),
        "oracle": lambda: diagnose("kind=matrix", [f"path={path}"]),
        "yaml": lambda: diagnose(write(tmp_path / "o.yaml", f"oracle: {block}\n"), []),
        "mixture": lambda: diagnose("kind=mixture", [f"members=[{block}, {{kind: matrix, path: {path}, flip: 0.5}}]"]),
    }[form]()
    assert report.systems is not None and report.systems.kind == "cyclic"
    assert report.systems.gain.mean == pytest.approx(0.25 if form == "mixture" else 0.5)
    json.dumps(report.to_json(), allow_nan=False)


def test_a_table_for_each_prompt(tmp_path: Path) -> None:
    """Two games: a circle, worth 50 points, and an order, worth nothing."""
    order = [[0.5, 0.9, 0.9], [0.1, 0.5, 0.9], [0.1, 0.1, 0.5]]
    path = write(tmp_path / "two.json", RPS | {"prompts": ["p", "q"], "preferences": [RPS["preferences"], order]})
    report = diagnose(path, [])
    assert report.sentence.startswith("A Nash method can help: 1 of 2 prompts have circles")
    assert report.prompts is not None and report.prompts.gain is not None
    assert report.prompts.gain.mean == pytest.approx(0.25)


def test_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"items": ["a", "b", "c"], "wins": [[0, 90, 95], [10, 0, 70], [5, 30, 0]]})
    report = diagnose(path, [])
    assert report.num_judgements == 300 and report.systems is not None and report.systems.kind == "bradley_terry"


def test_a_data_block_and_lists(tmp_path: Path) -> None:
    """A YAML file needs nothing but its data block. Ranked lists are orders: they cannot show a circle."""
    rows = [{"prompt": f"p{n}", "responses": ["one", "two", "three"]} for n in range(4)]
    path = write(tmp_path / "lists.jsonl", lines(rows))
    report = diagnose(write(tmp_path / "d.yaml", f"data: {{preferences: {{path: {path}, format: ranked}}}}\n"), [])
    assert report.sentence.startswith("Nothing can be said") and "one judge's order" in report.sentence
    assert any("4 rows are orders" in note for note in report.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kind=rule", "rule=shorter"], "`alignment crossplay` asks any oracle"),
        (["{rows}", "system=a"], "unknown key 'system'; did you mean 'systems'"),
        (["{rows}", "systems=[a, b]", "format=pairs"], "format: nothing reads it with systems; remove it"),
        (["{table}", "limit=3"], "expected no keys beside a table"),
        (["{empty}"], "expected data.preferences or an oracle of kind matrix, found neither"),
        (["{wrong}"], "expected 'items' beside 'wins'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    files = {
        "rows": write(tmp_path / "rows.jsonl", lines([{"prompt": "p", "chosen": "a", "rejected": "b"}])),
        "table": write(tmp_path / "table.json", RPS),
        "empty": write(tmp_path / "empty.yaml", "seed: 0\n"),
        "wrong": write(tmp_path / "wrong.json", {"wins": [[0, 1], [1, 0]]}),
    }
    source, *overrides = [argument.format(**files) for argument in arguments]
    with pytest.raises(UserError, match=message):
        diagnose(source, overrides)
