"""From a recipe's ``oracle:`` block to an oracle."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignment.errors import UserError
from alignment.methods._card import nearest
from alignment.oracles.base import BothOrders, OneOrder, SettledOracle
from alignment.oracles.combine import (
    CalibratedOracle,
    MixtureOracle,
    NoisyOracle,
    PanelOracle,
    TiedOracle,
    VerdictOracle,
)
from alignment.oracles.endpoint import EndpointSpec, check_client
from alignment.oracles.kept import KeptOracle, LocalAsker
from alignment.oracles.ledger import Account, Accounts, Budget
from alignment.oracles.matrix import read_matrix
from alignment.oracles.models import (
    BradleyTerryOracle,
    LabelOracle,
    PairwiseOracle,
    check_model,
    load_classifier,
    load_language_model,
    model_version,
)
from alignment.oracles.rules import RULES, RuleOracle, find_rule, rule_source
from alignment.oracles.templates import read_template
from alignment.oracles.verdicts import ARENA_HARD, ArenaHardReader, LabelReader, LogprobReader, Reader
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


class ModelBudget(BaseModel):
    """What a run may ask of a model here; its time is counted in questions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    calls: int = Field(gt=0)


class TextGameSpec(OracleSpec):
    """The annotators of the text game: all of them, or one of their groups."""

    group: Literal["schools", "minority"] | None = None

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        # The game is made of oracles, and loads a language model.
        from alignment.textgame import shared_game

        oracle = shared_game().oracle(self.group)
        content = oracle.prefs_XAA.numpy().tobytes()
        return _exact(oracle, self, {"kind": "textgame", "group": self.group}, content, accounts)


class RewardSpec(OracleSpec):
    """A Bradley-Terry reward model."""

    model: str
    batch_size: int = Field(default=8, gt=0)
    budget: ModelBudget | None = None

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        model, tokenizer = load_classifier(self.model, num_labels=1)
        oracle = BradleyTerryOracle(model.to(device), tokenizer, batch_size=self.batch_size)
        return _modelled(oracle, self, {"kind": "bradley_terry"}, accounts)


class PairwiseSpec(OracleSpec):
    """A classifier of pairs; ``template`` is a file."""

    model: str
    template: str | None = None
    batch_size: int = Field(default=8, gt=0)
    budget: ModelBudget | None = None

    def check(self) -> None:
        read_template(self.template)

    def content(self) -> bytes:
        return read_template(self.template).encode()

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        model, tokenizer = load_classifier(self.model)
        template = read_template(self.template)
        oracle = PairwiseOracle(model.to(device), tokenizer, template=template, batch_size=self.batch_size)
        return _modelled(oracle, self, {"kind": "pairwise", "template": template}, accounts)


class LanguageModelSpec(OracleSpec):
    """A language model that names the better answer; ``template`` is a file, ``labels`` stand for left and right."""

    model: str
    template: str | None = None
    labels: list[str] = Field(default=["A", "B"], min_length=2, max_length=2)
    batch_size: int = Field(default=8, gt=0)
    budget: ModelBudget | None = None

    def check(self) -> None:
        read_template(self.template)

    def content(self) -> bytes:
        return read_template(self.template).encode()

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


_READS = {"label": ("labels", "pattern"), "logprobs": ("labels", "top_logprobs"), "arena_hard": ("probabilities",)}
_REPLY_TOKENS = {"label": 16, "logprobs": 1, "arena_hard": 2048}


class JudgeSpec(EndpointSpec, OracleSpec):
    """A language model behind an OpenAI-compatible endpoint; ``template`` is a file.

    Attributes:
        template: ``None`` for the shipped one of the verdict.
        verdict: how the reply becomes a probability, see :mod:`alignment.oracles.verdicts`.
        labels: for left, right and, with ``verdict: label``, a tie.
        pattern: a regular expression that finds the label.
        top_logprobs: tokens whose log-probabilities are asked for.
        probabilities: of Arena-Hard's labels.
        max_tokens: of the reply; ``None`` for what the verdict needs.
        unparsable: what becomes of a reply without a verdict: a counted tie, an error, or one more request and then a
            counted tie.
    """

    template: str | None = None
    verdict: Literal["label", "logprobs", "arena_hard"] = "label"
    labels: list[str] = Field(default=["A", "B"], min_length=2, max_length=3)
    pattern: str | None = None
    top_logprobs: int = Field(default=5, ge=2, le=20)
    probabilities: dict[Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"], float] | None = None
    max_tokens: int | None = Field(default=None, gt=0)
    unparsable: Literal["tie", "error", "retry"] = "tie"

    @model_validator(mode="after")
    def _keys_fit_the_verdict(self) -> Self:
        read = _READS[self.verdict]
        every = {key for keys in _READS.values() for key in keys}
        unread = sorted(self.model_fields_set & every - set(read))
        if unread:
            raise ValueError(f"expected only {', '.join(read)} with verdict: {self.verdict}, got {', '.join(unread)}")
        if len(set(self.labels)) < len(self.labels) or not all(self.labels):
            raise ValueError(f"expected labels that differ, got {self.labels}")
        if self.verdict == "logprobs" and len(self.labels) != 2:
            raise ValueError(f"expected two labels with verdict: logprobs, got {self.labels}")
        wrong = {label: p for label, p in (self.probabilities or {}).items() if not 0.0 <= p <= 1.0}
        if wrong:
            raise ValueError(f"expected probabilities in [0, 1], got {wrong}")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"expected a regular expression as pattern, got {self.pattern!r} ({error})") from None
        return self

    def check(self) -> None:
        self.template_text()
        check_client("oracle.kind: 'judge'")

    def template_text(self) -> str:
        """What is asked, without prompt and answers."""
        return read_template(self.template, shipped=_SHIPPED[self.verdict])

    def content(self) -> bytes:
        return self.template_text().encode()

    @property
    def reply_tokens(self) -> int:
        """The longest reply."""
        return self.max_tokens or _REPLY_TOKENS[self.verdict]

    def _build(self, device: torch.device | str, accounts: Accounts) -> Oracle:
        oracle = self.open(
            accounts,
            template=self.template_text(),
            max_tokens=self.reply_tokens,
            reader=self._reader(),
            reads=self._reads(),
            unparsable=self.unparsable,
            ledger=True if self.ledger is None else self.ledger,
        )
        return _ordered(oracle, self, oracle.account)

    def _reader(self) -> Reader:
        match self.verdict:
            case "label":
                return LabelReader(self.labels, self.pattern)
            case "logprobs":
                return LogprobReader(self.labels, top=self.top_logprobs)
            case "arena_hard":
                return ArenaHardReader(self._probabilities)

    @property
    def _probabilities(self) -> dict[str, float]:
        return {**ARENA_HARD, **{str(label): p for label, p in (self.probabilities or {}).items()}}

    def _reads(self) -> dict[str, Any]:
        """All that decides how a reply is read, also where it is the default."""
        keys = {key: value for key, value in self.model_dump(mode="json").items() if key in _READS[self.verdict]}
        if self.verdict == "arena_hard":
            keys["probabilities"] = self._probabilities
        return {"verdict": self.verdict, **keys}


_SHIPPED = {"label": "pair", "logprobs": "pair", "arena_hard": "arena_hard"}


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
        if isinstance(leaf, RewardSpec | PairwiseSpec | LanguageModelSpec):
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


def _exact(oracle: Oracle, spec: OracleSpec, identity: Mapping[str, Any], content: bytes, accounts: Accounts) -> Oracle:
    """An oracle that costs nothing and promises P + P^T = 1; ``content`` is what a change of it changes."""
    if spec.ledger:
        version = hashlib.sha256(content).hexdigest()
        account = accounts.open({**identity, "version": version}, ledger=spec.ledger)
        oracle = KeptOracle(LocalAsker(oracle, account), account)
    return BothOrders(oracle, is_exact=True) if spec.symmetrize else OneOrder(oracle)


def _modelled(
    oracle: BradleyTerryOracle | PairwiseOracle | LabelOracle,
    spec: RewardSpec | PairwiseSpec | LanguageModelSpec,
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
    return _ordered(kept, spec, account)


def _ordered(oracle: Oracle, spec: OracleSpec, account: Account) -> Oracle:
    if not spec.symmetrize:
        return OneOrder(oracle)
    return BothOrders(oracle, on_inconsistency=account.note_inconsistency)


def _handed_down(spec: MixtureSpec | PanelSpec, member: Mapping[str, Any]) -> dict[str, Any]:
    """A member's block, with what its group says for all of them."""
    return {**spec.model_dump(include={"symmetrize", "ledger"}, exclude_unset=True), **member}


def _describe(details: Any, kind: str) -> str:
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"oracle: unknown key '{key}' for kind '{kind}'{nearest(key, tuple(_known(KINDS[kind])))}"
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
