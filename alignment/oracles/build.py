"""From a recipe's ``oracle:`` block to an oracle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignment.errors import UserError
from alignment.games import PreferenceGame
from alignment.methods._card import nearest
from alignment.oracles.combine import MixtureOracle, NoisyOracle, PanelOracle, TiedOracle, VerdictOracle
from alignment.oracles.matrix import MatrixOracle
from alignment.oracles.models import (
    PAIR_TEMPLATE,
    BradleyTerryOracle,
    LabelOracle,
    PairwiseOracle,
    check_template,
    load_classifier,
    load_language_model,
)
from alignment.oracles.rules import RuleOracle, find_rule
from alignment.types import Oracle


class OracleSpec(BaseModel):
    """What every kind has.

    Attributes:
        flip: probability that a label is flipped.
        ties: answers this near to one half become ties.
        verdict_seed: verdicts of one annotator, 0 or 1, drawn by this seed, in place of probabilities.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    flip: float = Field(default=0.0, ge=0, le=0.5)
    ties: float = Field(default=0.0, ge=0, le=0.5)
    verdict_seed: int | None = None

    @model_validator(mode="after")
    def _verdicts_are_no_ties(self) -> Self:
        if self.ties and self.verdict_seed is not None:
            raise ValueError("expected ties or verdict_seed, got both: a verdict is 0 or 1")
        return self

    def build(self, device: torch.device | str) -> Oracle:
        """The oracle, with its models on the device."""
        oracle = self._build(device)
        if self.flip:
            oracle = NoisyOracle(oracle, flip=self.flip)
        if self.ties:
            oracle = TiedOracle(oracle, width=self.ties)
        return oracle if self.verdict_seed is None else VerdictOracle(oracle, seed=self.verdict_seed)

    def check(self) -> None:
        """Raise what can be known without loading a model."""

    def _build(self, device: torch.device | str) -> Oracle:
        raise NotImplementedError


class RuleSpec(OracleSpec):
    """A named rule, or a function by its dotted path."""

    rule: str

    def check(self) -> None:
        find_rule(self.rule)

    def _build(self, device: torch.device | str) -> Oracle:
        return RuleOracle(find_rule(self.rule))


class MatrixSpec(OracleSpec):
    """A JSON file of ``{"responses": [...], "preferences": [[...], ...]}``, optionally ``prompts`` and one for each."""

    path: str

    def check(self) -> None:
        _read_matrix(Path(self.path))

    def _build(self, device: torch.device | str) -> Oracle:
        return _read_matrix(Path(self.path))


class RewardSpec(OracleSpec):
    """A Bradley-Terry reward model."""

    model: str
    batch_size: int = Field(default=8, gt=0)

    def _build(self, device: torch.device | str) -> Oracle:
        model, tokenizer = load_classifier(self.model, num_labels=1)
        return BradleyTerryOracle(model.to(device), tokenizer, batch_size=self.batch_size)


class PairwiseSpec(OracleSpec):
    """A classifier of pairs; ``template`` is a file."""

    model: str
    template: str | None = None
    batch_size: int = Field(default=8, gt=0)

    def check(self) -> None:
        _read_template(self.template)

    def _build(self, device: torch.device | str) -> Oracle:
        model, tokenizer = load_classifier(self.model)
        template = _read_template(self.template)
        return PairwiseOracle(model.to(device), tokenizer, template=template, batch_size=self.batch_size)


class LanguageModelSpec(OracleSpec):
    """A language model that names the better answer; ``template`` is a file, ``labels`` stand for left and right."""

    model: str
    template: str | None = None
    labels: list[str] = Field(default=["A", "B"], min_length=2, max_length=2)
    batch_size: int = Field(default=8, gt=0)

    def check(self) -> None:
        _read_template(self.template)

    def _build(self, device: torch.device | str) -> Oracle:
        model, tokenizer = load_language_model(self.model)
        return LabelOracle(
            model.to(device),
            tokenizer,
            template=_read_template(self.template),
            labels=(self.labels[0], self.labels[1]),
            batch_size=self.batch_size,
        )


class MixtureSpec(OracleSpec):
    """A crowd of oracles; with equal weights, an ensemble."""

    members: list[dict[str, Any]] = Field(min_length=1)
    weights: list[float] | None = None

    def check(self) -> None:
        for member in self.members:
            check_oracle(member)
        weights = [1.0] * len(self.members) if self.weights is None else self.weights
        if len(weights) != len(self.members) or not all(weight > 0.0 for weight in weights):
            raise UserError(
                f"oracle.weights: expected a positive weight for each of {len(self.members)} members, got {weights}"
            )

    def _build(self, device: torch.device | str) -> Oracle:
        return MixtureOracle([build_oracle(member, device) for member in self.members], self.weights)


class PanelSpec(OracleSpec):
    """K oracles by name, for a method that reads each; what every kind has belongs to the members."""

    members: dict[str, dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _members_have_their_own(self) -> Self:
        if self.model_fields_set - {"members"}:
            raise ValueError("expected flip, ties and verdict_seed in the members of a panel, got them beside")
        return self

    def check(self) -> None:
        for member in self.members.values():
            check_oracle(member)

    def _build(self, device: torch.device | str) -> Oracle:
        return PanelOracle({name: build_oracle(member, device) for name, member in self.members.items()})


KINDS: Mapping[str, type[OracleSpec]] = {
    "rule": RuleSpec,
    "matrix": MatrixSpec,
    "bradley_terry": RewardSpec,
    "pairwise": PairwiseSpec,
    "language_model": LanguageModelSpec,
    "mixture": MixtureSpec,
    "panel": PanelSpec,
}


def check_oracle(spec: Mapping[str, Any]) -> OracleSpec:
    """Check an ``oracle:`` block without loading a model.

    Raises:
        UserError: for an unknown kind or key (with the nearest one), a wrong value, or a file that cannot be read.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"oracle.kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    try:
        checked = KINDS[kind].model_validate({key: value for key, value in spec.items() if key != "kind"})
    except ValidationError as error:
        raise UserError("; ".join(_describe(details, kind) for details in error.errors())) from None
    checked.check()
    return checked


def build_oracle(spec: Mapping[str, Any], device: torch.device | str = "cpu") -> Oracle:
    """Build an oracle.

    Args:
        spec: ``{kind: rule, rule: NAME or module:function}``, ``{kind: matrix, path: FILE}``, ``{kind: bradley_terry,
            model: ...}``, ``{kind: pairwise, model: ...}``, ``{kind: language_model, model: ...}``, ``{kind: mixture,
            members: [...], weights: [...]}`` or ``{kind: panel, members: {name: ...}}``; all but the last with
            ``flip``, ``ties`` or ``verdict_seed``.
        device: where its models go.

    Raises:
        UserError: as :func:`check_oracle`, and for a model that cannot be loaded or was never trained.
    """
    return check_oracle(spec).build(device)


def _describe(details: Any, kind: str) -> str:
    key = ".".join(str(part) for part in details["loc"])
    known = tuple(KINDS[kind].model_fields)
    if details["type"] == "extra_forbidden":
        return f"oracle: unknown key '{key}' for kind '{kind}'{nearest(key, known)}"
    if details["type"] == "missing":
        return f"oracle.{key}: expected a value for kind '{kind}', got none"
    where = f"oracle.{key}" if key else "oracle"
    if details["type"] == "value_error":
        return f"{where}: {details['ctx']['error']}"
    return f"{where}: {details['msg'][0].lower()}{details['msg'][1:]}, got {details['input']!r}"


def _read_template(path: str | None) -> str:
    if path is None:
        return PAIR_TEMPLATE
    try:
        template = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"oracle.template: expected a file, got '{path}' ({error.strerror})") from None
    check_template(template)
    return template


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
