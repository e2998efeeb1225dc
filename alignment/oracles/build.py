"""From a recipe's ``oracle:`` block to an oracle."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Self, get_args

import torch
from pydantic import BaseModel, Field, ValidationError, model_validator

from alignment.errors import UserError
from alignment.oracles.combine import CalibratedOracle, MixtureOracle, PanelOracle
from alignment.oracles.judge_spec import JudgeSpec
from alignment.oracles.ledger import Accounts
from alignment.oracles.models import check_model
from alignment.oracles.specs import (
    LanguageModelSpec,
    MatrixSpec,
    ModelSpec,
    OracleSpec,
    PairwiseSpec,
    RewardSpec,
    RuleSpec,
    TextGameSpec,
)
from alignment.types import Oracle
from alignment.values import nearest_or_all


class MixtureSpec(OracleSpec):
    """A crowd of oracles; equal weights: an ensemble. Its ``symmetrize`` and ``ledger`` are its members' defaults."""

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

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        members = [build_oracle(_handed_down(self, member), device, accounts) for member in self.members]
        return MixtureOracle(members, self.weights)


class PanelSpec(OracleSpec):
    """K oracles by name, for a method that reads each. Its ``symmetrize`` and ``ledger`` are its members' defaults.

    Attributes:
        calibrate: members that are rewards are put on one scale before any minimum; probabilities are on one.
    """

    members: dict[str, dict[str, Any]] = Field(min_length=1)
    calibrate: bool = True

    @model_validator(mode="after")
    def _members_have_their_own(self) -> Self:
        beside = sorted(self.model_fields_set & {"flip", "ties", "verdict_seed"})
        if beside:
            raise ValueError(f"expected {', '.join(beside)} in the members of a panel, got it beside them")
        bent = [name for name, member in self.members.items() if _is_reward(member) and _BENDING & member.keys()]
        if self.calibrate and bent:
            raise ValueError(
                f"expected no {', '.join(sorted(_BENDING))} for the reward '{bent[0]}', whose spread is measured; "
                "calibrate: false takes rewards as they are"
            )
        return self

    def check(self) -> None:
        for member in self.members.values():
            check_oracle(member)

    def build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        """The panel itself: whoever reads its members must see it."""
        members = {}
        for name, member in self.members.items():
            oracle = build_oracle(_handed_down(self, member), device, accounts)
            members[name] = CalibratedOracle(oracle) if self.calibrate and _is_reward(member) else oracle
        return PanelOracle(members)


# After these a probability is no longer the sigmoid of a difference of rewards.
_BENDING = frozenset({"flip", "ties", "verdict_seed"})


def _is_reward(member: Mapping[str, Any]) -> bool:
    return member.get("kind") == "bradley_terry"


KINDS: Mapping[str, type[OracleSpec]] = {
    "rule": RuleSpec,
    "matrix": MatrixSpec,
    "textgame": TextGameSpec,
    "bradley_terry": RewardSpec,
    "pairwise": PairwiseSpec,
    "language_model": LanguageModelSpec,
    "judge": JudgeSpec,
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


def oracle_name(spec: Mapping[str, Any]) -> str:
    """What a file of verdicts calls an oracle.

    Example:
        >>> oracle_name({"kind": "rule", "rule": "shorter"})
        'rule shorter'
    """
    what = next((f" {spec[key]}" for key in ("model", "rule", "path") if key in spec), "")
    return f"{spec['kind']}{what}"


def check_keys(spec: Mapping[str, Any]) -> None:
    """Refuse judges whose key is not set, before anything is done for them.

    Raises:
        UserError: naming the environment variable; and as :func:`check_oracle`.
    """
    for leaf in leaves_of(spec):
        if isinstance(leaf, JudgeSpec):
            leaf.read_key()


def check_models(spec: Mapping[str, Any]) -> None:
    """Refuse models that run here and are not there; no weights are loaded.

    Raises:
        UserError: naming the model; and as :func:`check_oracle`.
    """
    for leaf in leaves_of(spec):
        if isinstance(leaf, ModelSpec):
            check_model(leaf.model)


def leaves_of(spec: Mapping[str, Any]) -> tuple[OracleSpec, ...]:
    """The oracles that answer: of a mixture or a panel its members.

    Raises:
        UserError: as :func:`check_oracle`.
    """
    checked = check_oracle(spec)
    if not isinstance(checked, MixtureSpec | PanelSpec):
        return (checked,)
    members = checked.members.values() if isinstance(checked, PanelSpec) else checked.members
    return tuple(leaf for member in members for leaf in leaves_of(_handed_down(checked, member)))


def content_digest(spec: Mapping[str, Any]) -> str:
    """A hash of what an ``oracle:`` block only names: the source of rules, matrices, templates.

    Raises:
        UserError: as :func:`check_oracle`.
    """
    digest = hashlib.sha256()
    for leaf in leaves_of(spec):
        content = leaf.content()
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def build_oracle(
    spec: Mapping[str, Any], device: torch.device | str = "cpu", accounts: Accounts | None = None
) -> Oracle:
    """Build an oracle.

    Args:
        spec: ``{kind: rule, rule: NAME or module:function}``, ``{kind: matrix, path: FILE}``, ``{kind: textgame}``,
            ``{kind: bradley_terry, model: ...}``, ``{kind: pairwise, model: ...}``, ``{kind: language_model, model:
            ...}``, ``{kind: judge, model: ..., base_url: ...}``, ``{kind: mixture, members: [...], weights: [...]}`` or
            ``{kind: panel, members: {name: ...}}``; all but the last with ``flip``, ``ties`` or ``verdict_seed``.
        device: where its models go.
        accounts: where verdicts and costs are kept; ``None`` keeps them in memory, unless a ledger is a file.

    Raises:
        UserError: as :func:`check_oracle`, for a model that cannot be loaded or was never trained, for a key that is
            not set, and for a ledger that cannot be opened.
    """
    return check_oracle(spec).build(device, Accounts() if accounts is None else accounts)


# How a judge is reached and paid, and what that may cost: another value gives the same answers.
_UNDECISIVE = frozenset(
    {"api_key_env", "timeout", "retries", "backoff", "concurrency", "prices", "budget", "max_unparsable", "ledger"}
)


def deciding_keys(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an ``oracle:`` block that decides its answers: what a run and its continuation must share.

    Example:
        >>> deciding_keys({"kind": "rule", "rule": "shorter", "ledger": True})
        {'kind': 'rule', 'rule': 'shorter'}
    """
    kept = {key: value for key, value in spec.items() if key not in _UNDECISIVE}
    members = kept.get("members")
    if isinstance(members, Mapping):
        kept["members"] = {name: deciding_keys(member) for name, member in members.items()}
    elif isinstance(members, list):
        kept["members"] = [deciding_keys(member) for member in members]
    return kept


def _handed_down(spec: MixtureSpec | PanelSpec, member: Mapping[str, Any]) -> dict[str, Any]:
    """A member's block, with what its group says for all of them."""
    return {**spec.model_dump(include={"symmetrize", "ledger"}, exclude_unset=True), **member}


def _describe(details: Any, kind: str) -> str:
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"oracle: unknown key '{key}' for kind '{kind}'{nearest_or_all(key, tuple(_known(KINDS[kind])))}"
    if details["type"] == "missing":
        return f"oracle.{key}: expected a value for kind '{kind}', got none"
    where = f"oracle.{key}" if key else "oracle"
    if details["type"] == "value_error":
        return f"{where}: {details['ctx']['error']}"
    return f"{where}: {details['msg'][0].lower()}{details['msg'][1:]}, got {details['input']!r}"


def _known(block: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in block.model_fields.items():
        yield prefix + name
        for part in get_args(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _known(part, f"{prefix}{name}.")
