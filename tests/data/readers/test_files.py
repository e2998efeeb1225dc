"""The same rows come out of every kind of file, and of the Hub; what cannot be read is named."""

import csv
import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from alignment.data.readers import read_rows
from alignment.errors import UserError

Write = Callable[..., Path]
Fails = Callable[..., str]

ROWS: list[dict[str, Any]] = [
    {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "NA", "weight": 2.0, "annotator": "ann"},
    {"prompt": "Say, 'a\nb'", "chosen": 'a "b", c', "rejected": "null", "weight": 1.0, "annotator": "bob"},
]
ASK = {"role": "user", "content": "q"}
CHAT = {name: [ASK, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
LISTS = {"prompt": "q", "responses": ["a", "b"], "scores": [1.5, 2.0]}


def put_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def save(kind: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in a file or folder of this kind."""
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind.startswith("csv"):
        texts = [
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()} for row in rows
        ]
        put_csv(path, texts)
        if kind == "csv.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    elif kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(path)
    return path


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


KINDS = ["csv", "csv.gz", "parquet", "saved", "saved splits"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [ROWS, [CHAT], [LISTS]], ids=["strings", "conversations", "lists"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    """CSV among them: "4" stays text, "NA" and "null" are replies, and a line break in quotes is no new row."""

    def contents(kind: str) -> list[Any]:
        read = read_rows(save(kind, tmp_path, rows)).rows
        return [(row.prompt, row.responses, row.comparisons, row.scores, row.weight, row.annotator) for row in read]

    assert contents(kind) == contents("jsonl")
    texts = [text for row in read_rows(tmp_path / f"data.{kind}").rows for text in row.responses]
    assert all(type(text) is str for text in texts)


def test_rows_are_numbered_by_line_or_by_place(tmp_path: Path) -> None:
    """The first row of CSV stands on line 2; the second starts on line 3, before its line break."""
    assert [row.source for row in read_rows(save("csv", tmp_path, [*ROWS, ROWS[0]])).rows] == [
        f"data.csv:{line}" for line in (2, 3, 5)
    ]
    assert [row.source for row in read_rows(save("parquet", tmp_path, ROWS)).rows] == [
        "data.parquet:1",
        "data.parquet:2",
    ]


def test_a_null_in_a_table_is_as_no_value(tmp_path: Path) -> None:
    """Tables have every column in every row."""
    rows = [CHAT | {"prompt": None, "annotator": None}, CHAT | {"prompt": None, "annotator": "ann"}]
    assert [row.annotator for row in read_rows(save("parquet", tmp_path, rows)).rows] == [None, "ann"]


def test_bad_tables_are_refused(tmp_path: Path, reading_fails: Fails) -> None:
    def put(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    reading_fails(put("empty.csv", ""), "empty.csv: .*the file is empty")
    reading_fails(put("header.csv", "prompt,chosen\n"), "header.csv: .*the file is empty")
    reading_fails(put("twice.csv", "a,a\n1,2\n"), "twice.csv:1: expected different names")
    reading_fails(
        put("semicolons.csv", "prompt;chosen\nq;a\n"), "semicolons.csv:1: expected columns divided by .,., found .;."
    )
    reading_fails(put("long.csv", "prompt\nq\na,b\n"), "long.csv:3: expected 1 cells.* found 2; quote")
    reading_fails(put("open.csv", 'prompt\n"q'), "open.csv:2: expected a row of CSV")
    reading_fails(put("weight.csv", "prompt,weight\nq,heavy\n"), "weight.csv:2: expected a finite number in 'weight'")
    reading_fails(put("broken.parquet", "no table"), "broken.parquet: expected a Parquet file, found: ")
    reading_fails(put("rows.xlsx", ""), "ending in .jsonl, .*.parquet, found 'rows.xlsx'")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    reading_fails(tmp_path / "saved", "saved: expected a folder written by datasets.save_to_disk, found: ")


def test_a_split_is_chosen_by_name(tmp_path: Path, reading_fails: Fails) -> None:
    parts = {name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert read_rows(tmp_path / "both", split="test").rows[0].prompt[0].content == "test"
    reading_fails(tmp_path / "both", "expected a split of 'train', 'test', found no split; name one: split: train")
    reading_fails(tmp_path / "both", "found 'dev'", split="dev")


def test_a_limit_stops_the_reading(write: Write) -> None:
    """The broken third line is never reached; the limit counts rows that can be used."""
    path = write(ROWS[0], ROWS[0] | {"chosen": ""}, ROWS[1])
    path.write_text(path.read_text() + "broken")
    result = read_rows([path, path], limit=2)
    assert len(result.rows) == 2 and result.num_read == 3 and result.formats == ("pairs",)


# The Hub, without a network: what `datasets` is asked for, and what is made of its answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Answers for the Hub with an endless data set, and keeps what was asked and how many rows were drawn."""
    calls: list[dict[str, Any]] = []

    def endless() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            calls[-1]["drawn"] = number + 1
            yield {"prompt": f"q{number}", "chosen": "a", "rejected": "b"}

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        calls.append({"path": path, "name": name, **options})
        if options["streaming"]:
            table = datasets.IterableDataset.from_generator(endless)
            return table if options["split"] else datasets.IterableDatasetDict(train=table)
        return datasets.DatasetDict(train=datasets.Dataset.from_list([{"prompt": "q", "chosen": "a", "rejected": "b"}]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_the_hub_is_asked_for_the_named_part(hub: list[dict[str, Any]]) -> None:
    result = read_rows("hf://owner/name", config="en", revision="v1")
    assert hub == [{"path": "owner/name", "name": "en", "split": None, "revision": "v1", "streaming": False}]
    assert [row.source for row in result.rows] == ["owner/name:1"]


@pytest.mark.parametrize("split", [None, "train"])
def test_streaming_draws_no_more_than_the_limit(hub: list[dict[str, Any]], split: str | None) -> None:
    result = read_rows("hf://owner/name", split=split, streaming=True, limit=5)
    assert [row.prompt[0].content for row in result.rows] == [f"q{n}" for n in range(5)]
    assert hub[0]["drawn"] <= 6


def test_the_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, reading_fails: Fails) -> None:
    def load_dataset(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    reading_fails("hf://owner/name", "owner/name: expected a data set on the Hub .*, found: no network; check the name")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("hf://owner/name", {"streaming": True}, "expected a limit with streaming"),
        ("hf://datasets/owner/name", {}, "expected hf://owner/name, found more than that"),
        ("data.jsonl", {"streaming": True, "limit": 1}, "expected streaming only with a data set on the Hub"),
        ("data.jsonl", {"config": "en"}, "expected config only with a data set on the Hub"),
        ("data.jsonl", {"split": "train"}, "expected a split only for a data set on the Hub or a saved one"),
    ],
)
def test_options_that_nothing_would_read_are_refused(
    reading_fails: Fails, path: str, options: dict[str, Any], message: str
) -> None:
    reading_fails(path, message, **options)


def test_rows_in_memory_are_those_of_a_file(tmp_path: Path) -> None:
    """A data set and a list of dicts, each row named by its number."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    expected = read_rows(path)
    for rows in (ROWS, datasets.Dataset.from_list(ROWS)):
        found = read_rows(rows)
        assert [replace(row, source="") for row in found.rows] == [replace(row, source="") for row in expected.rows]
        assert [row.source for row in found.rows] == ["row:1", "row:2"]
    with pytest.raises(UserError, match="found 2 rows among 3"):
        read_rows([*ROWS, "rows.jsonl"])  # type: ignore[list-item]
