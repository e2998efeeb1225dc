"""From a recipe's ``oracle:`` block to an oracle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alignment.errors import UserError
from alignment.games import PreferenceGame
from alignment.oracles.matrix import MatrixOracle
from alignment.oracles.rules import RuleOracle, find_rule
from alignment.types import Oracle

_KEYS = {"rule": ("rule",), "matrix": ("path",)}


def build_oracle(spec: Mapping[str, Any]) -> Oracle:
    """Build an oracle.

    Args:
        spec: ``{kind: rule, rule: NAME or module:function}``, or ``{kind: matrix, path: FILE}`` with a JSON file of
            ``{"responses": [...], "preferences": [[...], ...]}``, optionally with ``prompts`` and one matrix for each.

    Raises:
        UserError: for an unknown kind or key, or a file that does not hold a preference game.
    """
    kind = spec.get("kind")
    if kind not in _KEYS:
        raise UserError(f"oracle.kind: expected one of {', '.join(_KEYS)}, got {kind!r}")
    if set(spec) != {"kind", *_KEYS[kind]}:
        given = ", ".join(sorted(map(str, spec))) or "nothing"
        raise UserError(f"oracle: expected the keys kind, {', '.join(_KEYS[kind])} for kind '{kind}', got {given}")
    return RuleOracle(find_rule(str(spec["rule"]))) if kind == "rule" else _read_matrix(Path(str(spec["path"])))


def _read_matrix(path: Path) -> MatrixOracle:
    try:
        content = json.loads(path.read_text())
        responses, prompts = content["responses"], content.get("prompts")
        prefs = torch.tensor(content["preferences"], dtype=torch.float64)
    except FileNotFoundError:
        raise UserError(f"oracle.path: no file at {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected JSON with 'responses' and 'preferences', got {error!r}") from error
    prefs_XAA = prefs if prefs.dim() == 3 else prefs[None]
    # The game's constructor checks that these are preferences.
    uniform_XA = torch.full(prefs_XAA.shape[:2], 1.0 / prefs_XAA.shape[1], dtype=torch.float64)
    game = PreferenceGame(prefs_XAA=prefs_XAA, ref_XA=uniform_XA, tau=0.0)
    return MatrixOracle(game.prefs_XAA, responses=responses, prompts=prompts)
