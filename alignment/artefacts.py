"""What the stages of a run leave: a file or a folder, and a manifest that says what made it.

A stage that finds its manifest is finished. A manifest of something else is refused, with what differs: an artefact is
never used for another recipe than the one it was made by.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignment.data import Comparison, EncodedRow, Row, Turn
from alignment.errors import UserError
from alignment.files import write_json, write_json_lines
from alignment.values import differences


@dataclass(frozen=True, slots=True)
class Artefact:
    """A stage's result on disk.

    Attributes:
        path: the file or the folder; the manifest stands beside it, with the suffix ``.manifest.json``.
        made_by: what decides its content, as JSON can hold it; the fingerprint of an earlier artefact among it.
    """

    path: Path
    made_by: Mapping[str, Any]

    @property
    def manifest(self) -> Path:
        """Where the manifest is."""
        return self.path.with_name(f"{self.path.name}.manifest.json")

    @property
    def fingerprint(self) -> str:
        """A hash of what made it."""
        return hashlib.sha256(json.dumps(self.made_by, sort_keys=True).encode()).hexdigest()

    def is_finished(self) -> bool:
        """Whether it is there, and was made by the same.

        Raises:
            UserError: if it was made by something else, naming it, or is no longer what was made.
        """
        if not (self.path.exists() and self.manifest.exists()):
            return False
        notes = self.notes()
        differing = differences(notes["made_by"], json.loads(json.dumps(self.made_by)))
        if differing:
            said = ", ".join(f"{key} ({then} then, {now} now)" for key, (then, now) in differing.items())
            raise UserError(
                f"{self.path}: made by other values of {said}; set them back, delete it and what was made of it, or "
                "start anew in another output_dir"
            )
        if notes.get("content") != self._content():
            raise UserError(
                f"{self.path}: expected what its manifest speaks of, found other content; delete it and what was made "
                "of it, and it will be made again"
            )
        return True

    def _content(self) -> str | None:
        """A hash of the content of a file; a folder's is that of whoever wrote it."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest() if self.path.is_file() else None

    def finish(self, **notes: Any) -> None:
        """Write the manifest, which says that the artefact is whole."""
        content = {
            "fingerprint": self.fingerprint,
            "content": self._content(),
            "made_by": dict(self.made_by),
            **notes,
        }
        write_json(self.manifest, content)

    def notes(self) -> dict[str, Any]:
        """What :meth:`finish` was told.

        Raises:
            UserError: if the manifest cannot be read.
        """
        try:
            return dict(json.loads(self.manifest.read_text()))
        except ValueError as error:
            raise UserError(
                f"{self.manifest}: expected JSON, got {error}; delete it, and it will be made again"
            ) from None


def write_rows(path: Path, rows: Sequence[EncodedRow]) -> None:
    """Rows as JSON lines: token ids, texts, comparisons."""
    write_json_lines(
        path,
        (
            {
                "source": item.row.source,
                "weight": item.row.weight,
                "prompt": [asdict(turn) for turn in item.row.prompt],
                "responses": item.row.responses,
                "comparisons": [asdict(comparison) for comparison in item.row.comparisons],
                "prompt_ids": item.prompt_ids,
                "completion_ids": item.completion_ids,
            }
            for item in rows
        ),
    )


def read_rows(path: Path) -> tuple[EncodedRow, ...]:
    """What :func:`write_rows` wrote.

    Raises:
        UserError: for a damaged line, with its number.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                row = Row(
                    prompt=tuple(Turn(**turn) for turn in record["prompt"]),
                    responses=tuple(record["responses"]),
                    comparisons=tuple(Comparison(**comparison) for comparison in record["comparisons"]),
                    weight=record["weight"],
                    source=record["source"],
                )
                completions = tuple(tuple(ids) for ids in record["completion_ids"])
                rows.append(EncodedRow(prompt_ids=tuple(record["prompt_ids"]), completion_ids=completions, row=row))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}:{number}: expected a row of this run, got {error!r}; delete the file"
                ) from None
    return tuple(rows)
