"""Parquet files, saved data sets and the Hub -> objects, through ``datasets``."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.values import JsonObject, listed

HUB = "hf://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which part of a data set to take.

    Args:
        config: a configuration of a data set on the Hub.
        split: of a data set on the Hub or of a saved one; needed where there are several.
        revision: a branch, tag or commit on the Hub.
        streaming: fetch rows from the Hub one after the other, not the whole data set.
    """

    config: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False


def is_saved(path: Path) -> bool:
    """Whether ``datasets.save_to_disk`` wrote this folder."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_parquet(path: Path, label: str) -> Iterator[tuple[int, JsonObject]]:
    """The rows of a Parquet file with their number, from 1."""
    import datasets

    # Streaming reads the file itself; otherwise a second copy would be written into the cache first.
    table = _load(
        label,
        "a Parquet file",
        lambda: datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True),
    )
    yield from _number_rows(table, label, "a Parquet file")


def read_saved(path: Path, label: str, origin: Origin) -> Iterator[tuple[int, JsonObject]]:
    """The rows of a folder that ``datasets.save_to_disk`` wrote, with their number, from 1."""
    import datasets

    what = "a folder written by datasets.save_to_disk"
    table = _take_split(_load(label, what, lambda: datasets.load_from_disk(str(path))), label, origin)
    yield from _number_rows(table.with_format(None), label, what)


def read_hub(name: str, label: str, origin: Origin) -> Iterator[tuple[int, JsonObject]]:
    """The rows of a data set on the Hub with their number, from 1."""
    import datasets

    what = "a data set on the Hub that this machine can reach"
    loaded = _load(
        label,
        what,
        lambda: datasets.load_dataset(
            name, origin.config, split=origin.split, revision=origin.revision, streaming=origin.streaming
        ),
    )
    yield from _number_rows(_take_split(loaded, label, origin), label, what)


def _load(label: str, what: str, load: Callable[[], Any]) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (OSError, ValueError, DatasetsError) as error:
        raise _unreadable(label, what, error) from None


def _number_rows(rows: Iterable[JsonObject], label: str, what: str) -> Iterator[tuple[int, JsonObject]]:
    from datasets.exceptions import DatasetsError

    try:
        yield from enumerate(rows, start=1)
    except (OSError, ValueError, DatasetsError) as error:
        raise _unreadable(label, what, error) from None


def _unreadable(label: str, what: str, error: Exception) -> UserError:
    found = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{label}: expected {what}, found: {found[:300]}; check the name and its options")


def _take_split(loaded: Any, label: str, origin: Origin) -> Any:
    if not isinstance(loaded, Mapping):
        return loaded
    splits = list(loaded)
    wanted = origin.split or (splits[0] if len(splits) == 1 else None)
    if wanted not in splits:
        found = "no split" if wanted is None else f"{wanted!r}"
        raise UserError(f"{label}: expected a split of {listed(splits)}, found {found}; name one: split: {splits[0]}")
    return loaded[wanted]
