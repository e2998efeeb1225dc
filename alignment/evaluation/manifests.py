"""What an evaluation was made by, so that two of them are compared only where that is the same."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import alignment
from alignment.errors import UserError
from alignment.files import write_json
from alignment.values import differences

MANIFEST = "manifest.json"
# What an evaluation took decides none of its numbers.
_FREE = ("cost",)


def compare_manifests(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two manifests: dotted key -> both values, ``None`` where one has none.

    Numbers of two evaluations may stand beside each other where nothing differs. What they cost is not compared.

    Example:
        >>> compare_manifests({"seed": 0, "cost": 3}, {"seed": 1, "cost": 4})
        {'seed': (0, 1)}
    """
    return differences(*({key: value for key, value in one.items() if key not in _FREE} for one in (first, second)))


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """A hash of all that decides the numbers."""
    return digest({key: value for key, value in manifest.items() if key not in _FREE})


def digest(value: Any) -> str:
    """A hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def freeze_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write what an evaluation is made by into its folder, or go on where the same is there.

    Args:
        folder: of the evaluation.
        manifest: as far as it is known; of a manifest that knows more, the parts that both have are compared.

    Raises:
        UserError: if the folder holds an evaluation that was made by something else; the keys are named.
    """
    path = folder / MANIFEST
    now = json.loads(json.dumps(manifest))
    if path.exists():
        there = read_manifest(folder)
        shared = now.keys() & there.keys()
        differing = compare_manifests({key: there[key] for key in shared}, {key: now[key] for key in shared})
        if differing:
            said = ", ".join(
                f"{key} ({_short(then)} then, {_short(new)} now)" for key, (then, new) in differing.items()
            )
            raise UserError(
                f"{path}: expected the evaluation that this folder holds, found other values of {said}; set them back, "
                "or give another output_dir: their numbers cannot stand side by side"
            )
        now = {**there, **now}
    write_json(path, now)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an evaluation.

    Raises:
        UserError: if there is none that can be read.
    """
    path = folder / MANIFEST
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder}: expected an evaluation with a {MANIFEST}, found none") from None
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found {error}; give another output_dir") from None


def versions(*packages: str) -> dict[str, str]:
    """Of Python, of this package, and of others that decide an answer."""
    ours = {"python": platform.python_version(), "alignment": alignment.__version__}
    return ours | {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers", *packages)
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
