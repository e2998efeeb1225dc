"""What an ``oracle:`` block may say of one oracle, and how it becomes one: rules, matrices, models that run here."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment.oracles.base import BothOrders, OneOrder, SettledOracle
from alignment.oracles.combine import NoisyOracle, TiedOracle, VerdictOracle
from alignment.oracles.kept import KeptOracle, LocalAsker
from alignment.oracles.ledger import Account, Accounts, Budget
from alignment.oracles.matrix import read_matrix
from alignment.oracles.models import (
    BradleyTerryOracle,
    LabelOracle,
    PairwiseOracle,
    load_classifier,
    load_language_model,
    model_version,
)
from alignment.oracles.rules import RULES, RuleOracle, find_rule, rule_source
from alignment.oracles.templates import read_template
from alignment.types import Oracle


class OracleSpec(BaseModel):
    """What every kind has.

    Attributes:
        flip: probability that a label is flipped.
        ties: answers this near to one half become ties.
        verdict_seed: verdicts of one annotator, 0 or 1, drawn by this seed, in place of probabilities.
        symmetrize: both presentation orders are asked and averaged; false: one of them, drawn by the question.
        ledger: where verdicts are kept: true for the run folder, or a file; ``None``: if they cost something.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    flip: float = Field(default=0.0, ge=0, le=0.5)
    ties: float = Field(default=0.0, ge=0, le=0.5)
    verdict_seed: int | None = None
    symmetrize: bool = True
    ledger: bool | str | None = None

    @model_validator(mode="after")
    def _verdicts_are_no_ties(self) -> Self:
        if self.ties and self.verdict_seed is not None:
            raise ValueError("expected ties or verdict_seed, got both: a verdict is 0 or 1")
        return self

    def build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        """The oracle, with its models on the device."""
        oracle = self._build(device, accounts)
        if self.flip:
            oracle = NoisyOracle(oracle, flip=self.flip)
        if self.ties:
            oracle = TiedOracle(oracle, width=self.ties)
        if self.verdict_seed is not None:
            oracle = VerdictOracle(oracle, seed=self.verdict_seed)
        return SettledOracle(oracle)

    def check(self) -> None:
        """Raise what can be known without loading a model."""

    def content(self) -> bytes:
        """What the block only names and decides the answers as well; models are known by their names."""
        return b""

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        """An oracle whose two orders add up to one."""
        raise NotImplementedError


class RuleSpec(OracleSpec):
    """A named rule, or a function by its dotted path."""

    rule: str

    def check(self) -> None:
        find_rule(self.rule)

    def content(self) -> bytes:
        return b"" if self.rule in RULES else rule_source(find_rule(self.rule))

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        rule = find_rule(self.rule)
        return _exact(RuleOracle(rule), self, {"kind": "rule", "rule": self.rule}, rule_source(rule), accounts)


class MatrixSpec(OracleSpec):
    """A JSON file of ``{"responses": [...], "preferences": [[...], ...]}``, optionally ``prompts`` and one for each."""

    path: str

    def check(self) -> None:
        read_matrix(Path(self.path))

    def content(self) -> bytes:
        return Path(self.path).read_bytes()

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        oracle = read_matrix(Path(self.path))
        return _exact(oracle, self, {"kind": "matrix", "path": self.path}, self.content(), accounts)


class TextGameSpec(OracleSpec):
    """The annotators of the text game: all of them, or one of their groups."""

    group: Literal["schools", "minority"] | None = None

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        # The game is made of oracles, and loads a language model.
        from alignment.textgame import shared_game

        oracle = shared_game().oracle(self.group)
        content = oracle.prefs_XAA.numpy().tobytes()
        return _exact(oracle, self, {"kind": "textgame", "group": self.group}, content, accounts)


class ModelBudget(BaseModel):
    """What a run may ask of a model here; its time is counted in questions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    calls: int = Field(gt=0)


class ModelSpec(OracleSpec):
    """What every model that runs here has."""

    model: str
    batch_size: int = Field(default=8, gt=0)
    budget: ModelBudget | None = None


class RewardSpec(ModelSpec):
    """A Bradley-Terry reward model."""

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        model, tokenizer = load_classifier(self.model, num_labels=1)
        oracle = BradleyTerryOracle(model.to(device), tokenizer, batch_size=self.batch_size)
        return _modelled(oracle, self, {"kind": "bradley_terry"}, accounts)


class AskedSpec(ModelSpec):
    """What every model has that reads both answers in one text; ``template`` is a file."""

    template: str | None = None

    def check(self) -> None:
        read_template(self.template)

    def content(self) -> bytes:
        return read_template(self.template).encode()


class PairwiseSpec(AskedSpec):
    """A classifier of pairs."""

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        model, tokenizer = load_classifier(self.model)
        template = read_template(self.template)
        oracle = PairwiseOracle(model.to(device), tokenizer, template=template, batch_size=self.batch_size)
        return _modelled(oracle, self, {"kind": "pairwise", "template": template}, accounts)


class LanguageModelSpec(AskedSpec):
    """A language model that names the better answer; ``labels`` stand for left and right."""

    labels: list[str] = Field(default=["A", "B"], min_length=2, max_length=2)

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        model, tokenizer = load_language_model(self.model)
        template = read_template(self.template)
        oracle = LabelOracle(
            model.to(device),
            tokenizer,
            template=template,
            labels=(self.labels[0], self.labels[1]),
            batch_size=self.batch_size,
        )
        identity = {"kind": "language_model", "template": template, "decoding": {"labels": self.labels}}
        return _modelled(oracle, self, identity, accounts)


def _exact(oracle: Oracle, spec: OracleSpec, identity: Mapping[str, Any], content: bytes, accounts: Accounts) -> Oracle:
    """An oracle that costs nothing and promises P + P^T = 1; ``content`` is what a change of it changes."""
    if spec.ledger:
        version = hashlib.sha256(content).hexdigest()
        account = accounts.open({**identity, "version": version}, ledger=spec.ledger)
        oracle = KeptOracle(LocalAsker(oracle, account), account)
    return BothOrders(oracle, is_exact=True) if spec.symmetrize else OneOrder(oracle)


def _modelled(
    oracle: BradleyTerryOracle | PairwiseOracle | LabelOracle,
    spec: ModelSpec,
    identity: Mapping[str, Any],
    accounts: Accounts,
) -> Oracle:
    """An oracle that runs a model here; its verdicts are kept where that is asked for, or its questions are limited."""
    is_kept = bool(spec.ledger) or spec.budget is not None
    account = accounts.open(
        # Hashing the weights takes as long as reading them.
        {"model": spec.model, **identity, "version": model_version(spec.model, oracle.model) if is_kept else None},
        ledger=spec.budget is not None if spec.ledger is None else spec.ledger,
        budget=None if spec.budget is None else Budget(calls=spec.budget.calls),
    )
    kept = KeptOracle(LocalAsker(oracle, account), account) if is_kept else oracle
    return ordered(kept, spec, account)


def ordered(oracle: Oracle, spec: OracleSpec, account: Account) -> Oracle:
    """Asked in both orders, or in one, as the block says."""
    if not spec.symmetrize:
        return OneOrder(oracle)
    return BothOrders(oracle, on_inconsistency=account.note_inconsistency)
