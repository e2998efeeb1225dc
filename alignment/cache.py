"""Files found by the content of what made them: written whole, verified when read."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignment.errors import UserError

# Weights, configuration, tokenizer and chat template.
_DECIDING = frozenset({".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"})


def cache_folder(kind: str) -> Path:
    """Where entries of a kind are kept: below ``ALIGNMENT_CACHE``, or in the user's cache folder."""
    root = os.environ.get("ALIGNMENT_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "alignment") / kind


def model_digest(folder: Path) -> "hashlib._Hash":
    """A hash of the files that decide what a model in a folder says: weights, configuration, tokenizer, template.

    It may be updated with what else does, such as the base of an adapter.
    """
    digest = hashlib.sha256()
    for file in sorted(item for item in folder.iterdir() if item.suffix in _DECIDING):
        with file.open("rb") as content:
            digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}".encode())
    return digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Tensors by name, and notes that JSON can hold."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


def write_entry(path: Path, key: str, entry: Entry) -> None:
    """Write an entry under a key that names everything that it was made from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid4().hex}.partial")
    manifest = {"key": key, "checksum": _checksum(entry), "notes": entry.notes}
    save_file(dict(entry.tensors), partial, metadata={"manifest": json.dumps(manifest)})
    # A reader sees the whole file or none.
    partial.rename(path)


def read_entry(path: Path, key: str, what: str) -> Entry:
    """Read an entry.

    Args:
        path: an existing file.
        key: what it must have been written under.
        what: what it holds, for the errors.

    Raises:
        UserError: if the file is damaged, belongs to another key, or does not hold what was written.
    """
    advice = f"delete it, and the {what} are computed again"
    try:
        with safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {}).get("manifest", "{}"))
            # The file is no mapping: it has keys() and is not iterable.
            entry = Entry(
                tensors={name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                notes=manifest.get("notes", {}),
            )
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: expected stored {what}, found a damaged file ({error}); {advice}") from None
    if manifest.get("key") != key:
        raise UserError(f"{path}: expected {what} of something else than the file holds; {advice}")
    if manifest.get("checksum") != _checksum(entry):
        raise UserError(f"{path}: expected the {what} that were stored, found others; {advice}")
    return entry


def _checksum(entry: Entry) -> str:
    digest = hashlib.sha256(json.dumps(entry.notes, sort_keys=True).encode())
    for name in sorted(entry.tensors):
        digest.update(name.encode())
        digest.update(entry.tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
