"""The core types: what is sampled, what the oracle says, what a loss may see, and what it must declare.

Shape letters: ``B`` prompts, ``G`` completions of a prompt, ``T`` tokens, ``K`` oracles.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from alignment.errors import MissingAnchorError, MissingFeedbackError
from alignment.shapes import check_shapes

FeedbackKind = Literal["pairs", "prefs", "wins", "scores"]
Sampler = Literal["dataset", "policy", "prev", "target", "mixture", "enumerate"]
Opponent = Literal["none", "group", "fresh", "target", "mixture", "ref", "past"]
Schedule = Literal["offline", "iterative", "online"]
Solution = Literal["bt_optimum", "kl_nash", "nash", "maxmin", "numeric", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """Token sequences that were sampled or read: no gradients, no opinions.

    The prompt is padded on the left and the completion on the right, so that in every row of a batch the completion
    starts at the same column.

    Attributes:
        input_ids_BGT: prompt and completion tokens.
        attention_mask_BGT: true on prompt and completion tokens.
        completion_mask_BGT: true on completion tokens (the end-of-sequence token included).
        valid_BG: false where a ragged group was padded.
    """

    input_ids_BGT: Tensor
    attention_mask_BGT: Tensor
    completion_mask_BGT: Tensor
    valid_BG: Tensor

    def __post_init__(self) -> None:
        check_shapes(
            input_ids_BGT=self.input_ids_BGT,
            attention_mask_BGT=self.attention_mask_BGT,
            completion_mask_BGT=self.completion_mask_BGT,
            valid_BG=self.valid_BG,
        )

    @property
    def lengths_BG(self) -> Tensor:
        """Number of completion tokens, int64."""
        return self.completion_mask_BGT.sum(-1)

    def first(self, count: int) -> "Completions":
        """The first so many completions of each prompt, without columns that only the others filled."""
        mask_BGT = self.attention_mask_BGT[:, :count]
        columns = int(mask_BGT.any(dim=(0, 1)).nonzero().max()) + 1
        return Completions(
            input_ids_BGT=self.input_ids_BGT[:, :count, :columns],
            attention_mask_BGT=mask_BGT[..., :columns],
            completion_mask_BGT=self.completion_mask_BGT[:, :count, :columns],
            valid_BG=self.valid_BG[:, :count],
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Completions":
        """The same on another device."""
        return Completions(
            input_ids_BGT=self.input_ids_BGT.to(device, non_blocking=non_blocking),
            attention_mask_BGT=self.attention_mask_BGT.to(device, non_blocking=non_blocking),
            completion_mask_BGT=self.completion_mask_BGT.to(device, non_blocking=non_blocking),
            valid_BG=self.valid_BG.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What the oracles said; any subset. ``nan`` means "not asked"; a ``nan`` from an oracle is an error upstream.

    Attributes:
        prefs_KBGG: ``P_k(y_i > y_j | x)`` in [0, 1]; ``P + P^T = 1``, diagonal 1/2.
        wins_KBG: ``P_k(y_i > mu | x)`` in [0, 1] against the opponent ``mu``.
        scores_KBG: real-valued: list labels or rewards; 1 and 0 for unpaired rows (``G = 1``).
    """

    prefs_KBGG: Tensor | None = None
    wins_KBG: Tensor | None = None
    scores_KBG: Tensor | None = None

    def __post_init__(self) -> None:
        check_shapes(prefs_KBGG=self.prefs_KBGG, wins_KBG=self.wins_KBG, scores_KBG=self.scores_KBG)

    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds that are present."""
        present = {"prefs": self.prefs_KBGG, "wins": self.wins_KBG, "scores": self.scores_KBG}
        return tuple(name for name, tensor in present.items() if tensor is not None)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Feedback":
        """The same on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return Feedback(
            prefs_KBGG=move(self.prefs_KBGG), wins_KBG=move(self.wins_KBG), scores_KBG=move(self.scores_KBG)
        )


def _identity(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """All that a loss may see. Entries of padded completions (``valid_BG`` false) are set to zero on construction.

    Attributes:
        logps_BG: log-probs summed over completion tokens, in nats; requires grad.
        lengths_BG: number of completion tokens.
        valid_BG: false for padded completions.
        feedback: what the oracles said.
        weights_BG: ``None`` for sampled responses; else the detached sampling probabilities of enumerated responses,
            and expectations are exact (see ``functional.pair_weights``).
        anchors: frozen log-probs [B, G] of other policies, by column name.
        token_logps_BGT: log-probs per token, where ``needs.per_token``.
        token_mask_BGT: true on completion tokens, where ``needs.per_token``.
        token_anchors: frozen log-probs per token [B, G, T], where ``needs.per_token``.
        token_excess_BGT: ``log pi(y_t) - log sum_v pi(v)^2``, where ``needs.confidence``; no gradient.
        mismatched_logps_B: log-prob of another row's completion given this prompt, where ``needs.mismatched``.
        mismatched_anchors: the same under frozen policies [B].
        batch_mean: mean of a scalar of the micro-batch over all ranks; the identity on one process.
    """

    logps_BG: Tensor
    lengths_BG: Tensor
    valid_BG: Tensor
    feedback: Feedback
    weights_BG: Tensor | None = None
    anchors: Mapping[str, Tensor] = field(default_factory=dict)
    token_logps_BGT: Tensor | None = None
    token_mask_BGT: Tensor | None = None
    token_anchors: Mapping[str, Tensor] = field(default_factory=dict)
    token_excess_BGT: Tensor | None = None
    mismatched_logps_B: Tensor | None = None
    mismatched_anchors: Mapping[str, Tensor] = field(default_factory=dict)
    batch_mean: Callable[[Tensor], Tensor] = _identity

    def __post_init__(self) -> None:
        check_shapes(
            logps_BG=self.logps_BG,
            lengths_BG=self.lengths_BG,
            valid_BG=self.valid_BG,
            weights_BG=self.weights_BG,
            prefs_KBGG=self.feedback.prefs_KBGG,
            wins_KBG=self.feedback.wins_KBG,
            scores_KBG=self.feedback.scores_KBG,
            token_logps_BGT=self.token_logps_BGT,
            token_mask_BGT=self.token_mask_BGT,
            token_excess_BGT=self.token_excess_BGT,
            mismatched_logps_B=self.mismatched_logps_B,
        )
        object.__setattr__(self, "logps_BG", torch.where(self.valid_BG, self.logps_BG, 0.0))

    def anchor(self, name: str) -> Tensor:
        """Frozen log-probs [B, G] of the policy ``name``.

        Raises:
            MissingAnchorError: if nobody supplied it; the message lists what is there.
        """
        values_BG = _lookup(self.anchors, name, "log-probs")
        check_shapes(logps_BG=self.logps_BG, anchor_BG=values_BG)
        return torch.where(self.valid_BG, values_BG, 0.0).detach()

    def token_anchor(self, name: str) -> Tensor:
        """Frozen per-token log-probs [B, G, T] of the policy ``name``, zero outside the completion."""
        values_BGT = _lookup(self.token_anchors, name, "per-token log-probs")
        return torch.where(self.tokens()[1], values_BGT, 0.0).detach()

    def mismatched_anchor(self, name: str) -> Tensor:
        """Frozen log-probs [B] of the mismatched completions under the policy ``name``."""
        return _lookup(self.mismatched_anchors, name, "log-probs of mismatched completions").detach()

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Per-token log-probs [B, G, T], zero outside the completion, and the completion mask [B, G, T]."""
        if self.token_logps_BGT is None or self.token_mask_BGT is None:
            raise MissingFeedbackError("expected per-token log-probs, got sums only: the card must set per_token=True")
        mask_BGT = self.token_mask_BGT.bool() & self.valid_BG[..., None]
        return torch.where(mask_BGT, self.token_logps_BGT, 0.0), mask_BGT

    @property
    def prefs_BGG(self) -> Tensor:
        """Preferences of the single oracle; ``nan`` where not asked or where either response is padding."""
        prefs_BGG = self._single(self.feedback.prefs_KBGG, "prefs")
        valid_BGG = self.valid_BG[:, :, None] & self.valid_BG[:, None, :]
        return torch.where(valid_BGG, prefs_BGG, torch.nan)

    @property
    def wins_BG(self) -> Tensor:
        """Win probabilities of the single oracle; 1/2 where the response is padding."""
        return torch.where(self.valid_BG, self._single(self.feedback.wins_KBG, "wins"), 0.5)

    @property
    def scores_BG(self) -> Tensor:
        """Scores of the single oracle; 0 where the response is padding."""
        return torch.where(self.valid_BG, self._single(self.feedback.scores_KBG, "scores"), 0.0)

    def _single(self, tensor: Tensor | None, kind: str) -> Tensor:
        if tensor is None:
            present = ", ".join(self.feedback.kinds()) or "nothing"
            raise MissingFeedbackError(f"the loss needs feedback '{kind}'; the batch has {present}")
        if tensor.shape[0] != 1:
            raise MissingFeedbackError(
                f"the loss expects one oracle, got {tensor.shape[0]}: combine them with a welfare function (maxmin)"
            )
        return tensor[0].detach()


def _lookup(columns: Mapping[str, Tensor], name: str, what: str) -> Tensor:
    if name not in columns:
        present = ", ".join(sorted(columns)) or "nothing"
        raise MissingAnchorError(f"the loss needs the {what} of '{name}'; the batch has {present}")
    return columns[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """One loss per prompt.

    The trainer minimises ``sum(weight_B * loss_B) / sum(weight_B)`` over the whole effective batch, accumulation and
    ranks included.

    Attributes:
        loss_B: differentiable.
        weight_B: what the prompt counts for; 0 for a prompt without a usable comparison. It depends on the feedback
            and the masks only, never on log-probs.
        metrics: detached values [B] for the log.
    """

    loss_B: Tensor
    weight_B: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shapes(loss_B=self.loss_B, weight_B=self.weight_B)


@dataclass(frozen=True, slots=True)
class AnchorSpec:
    """A policy whose frozen log-probs a loss reads."""

    name: str

    def columns(self) -> tuple[str, ...]:
        """Names under which the loss finds it in ``LossInputs.anchors``."""
        return (self.name,)


@dataclass(frozen=True, slots=True)
class Frozen(AnchorSpec):
    """A policy that never changes: ``ref``."""


@dataclass(frozen=True, slots=True)
class Previous(AnchorSpec):
    """The policy at the start of the iteration: ``prev``."""


@dataclass(frozen=True, slots=True)
class Past(AnchorSpec):
    """The policies at the start of the last ``window`` iterations: ``past_0`` (the same as ``prev``), ``past_1``, ...

    Before the first iteration the history is filled with the policy that training starts from.
    """

    window: int

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{j}" for j in range(self.window))


@dataclass(frozen=True, slots=True)
class Ema(AnchorSpec):
    """A slow copy: at every advance ``target <- decay * target + (1 - decay) * policy``, in parameters."""

    decay: float


@dataclass(frozen=True, slots=True)
class Behaviour(AnchorSpec):
    """The sampling distribution's own log-probs of what it sampled."""


@dataclass(frozen=True, slots=True)
class Player(AnchorSpec):
    """Another player of a game of several policies, frozen while this one trains."""


_TEXT_SAMPLERS = ("dataset", "prev", "policy", "mixture")
_TEXT_OPPONENTS = ("none", "group", "fresh", "target", "ref", "mixture")
_TEXT_ANCHORS = (Frozen, Ema, Behaviour, Previous, Past, Player)


@runtime_checkable
class Welfare(Protocol):
    """How K oracles become one. Its state is checkpointed; its means are averaged over ranks."""

    def init(self, num_oracles: int) -> Tensor:
        """State before the first batch."""
        ...

    def update(self, state: Tensor, group_means_K: Tensor) -> Tensor:
        """State after a batch whose mean utility under oracle k was ``group_means_K[k]``."""
        ...

    def combine(self, feedback: Feedback, state: Tensor) -> Feedback:
        """Feedback of one oracle (K = 1)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a loss needs, declared, so that the loop plans ahead and fails before a model is loaded.

    Attributes:
        feedback: ``pairs``: comparisons, hard or soft, of any of the pairs; ``prefs``: probabilities; ``wins``: win
            probabilities against the opponent; ``scores``: real values per response.
        anchors: policies whose frozen log-probs the loss reads.
        sampler: who samples the responses that enter the loss.
        full_support: any sampler that gives every response a chance keeps the theory; exact runs use the uniform one.
        opponent: whom a response is compared with, where feedback is ``wins``.
        mix: weight of ``ref`` in the geometric mixture, where sampler or opponent is ``mixture``.
        schedule: the weakest schedule that the theory allows.
        stages: gradient evaluations per iteration (2: extragradient).
        inner_steps: optimizer steps between two anchor advances.
        fits: regressions per round on one artefact; each one starts from, and has as its ``prev``, the policy that the
            fit before it produced; the first one that of the first fit of the round before.
        num_oracles: ``"one"`` or ``"many"``.
        welfare: how several oracles become one.
        per_token: the loss reads token log-probs.
        confidence: the loss reads ``token_excess_BGT``.
        mismatched: the loss reads log-probs of mismatched completions; groups have one response.
        micro_batch_statistics: the loss couples the prompts of a micro-batch, so that accumulation changes it.
    """

    feedback: FeedbackKind
    anchors: tuple[AnchorSpec, ...] = ()
    sampler: Sampler = "dataset"
    full_support: bool = False
    opponent: Opponent = "none"
    mix: float = 0.0
    schedule: Schedule = "offline"
    stages: int = 1
    inner_steps: int = 1
    fits: int = 1
    num_oracles: Literal["one", "many"] = "one"
    welfare: Welfare | None = None
    per_token: bool = False
    confidence: bool = False
    mismatched: bool = False
    micro_batch_statistics: bool = False

    @property
    def samples_in_batches(self) -> bool:
        """Whether responses are sampled while the policy trains. Else they stand in the data, as ``prev`` made them."""
        return self.sampler not in ("dataset", "prev")

    @property
    def text_gaps(self) -> tuple[str, ...]:
        """What of this the trainer cannot supply on language models yet; the exact games supply everything."""
        gaps = {
            f"the sampler '{self.sampler}'": self.sampler not in _TEXT_SAMPLERS,
            f"the opponent '{self.opponent}'": self.opponent not in _TEXT_OPPONENTS,
            **{f"log-probs of the policy '{spec.name}'": not isinstance(spec, _TEXT_ANCHORS) for spec in self.anchors},
        }
        return tuple(gap for gap, is_open in gaps.items() if is_open)

    @property
    def compares_responses(self) -> bool:
        """Whether the loss reads responses of a prompt against each other: one alone would teach it nothing.

        A loss that holds for any sampler of full support is one of their differences.
        """
        return self.feedback in ("pairs", "prefs") or self.opponent == "group" or self.full_support

    @property
    def allows_reuse(self) -> bool:
        """Whether a rollout may serve several steps: the loss reads how likely its responses were when sampled."""
        return self.stages == 1 and any(isinstance(spec, Behaviour) for spec in self.anchors)

    def anchor_columns(self) -> tuple[str, ...]:
        """Names of all anchor columns that the loss reads."""
        return tuple(column for spec in self.anchors for column in spec.columns())


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """Where a method comes from.

    Attributes:
        title: as printed.
        authors: BibTeX form, "Last, First and Last, First"; "and others" where the list is cut.
        year: of the first version.
        arxiv: identifier without version.
    """

    title: str
    authors: str
    year: int
    arxiv: str

    def bibtex(self, key: str) -> str:
        """A BibTeX entry."""
        fields = {
            "title": f"{{{self.title}}}",
            "author": self.authors,
            "year": str(self.year),
            "eprint": self.arxiv,
            "archivePrefix": "arXiv",
        }
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@misc{{{key},\n{body}\n}}"


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are the options that a recipe may set, and one pure loss."""

    @property
    def needs(self) -> Needs:
        """What the loop must supply."""
        ...

    @property
    def solution(self) -> Solution:
        """Which exact answer training on a game must reach."""
        ...

    @property
    def iterate(self) -> Literal["last", "average"]:
        """Which iterate the theory speaks of."""
        ...

    @property
    def paper(self) -> Paper:
        """Where it comes from."""
        ...

    def loss(self, x: LossInputs) -> LossOutput:
        """One loss per prompt."""
        ...


class Policy(Protocol):
    """Something that samples completions and gives their log-probs."""

    def sample(self, prompts: Completions, *, num_completions: int, generator: torch.Generator) -> Completions:
        """Samples ``num_completions`` answers to each prompt."""
        ...

    def logps(self, completions: Completions) -> Tensor:
        """Summed completion log-probs [B, G], in nats."""
        ...


@runtime_checkable
class Oracle(Protocol):
    """A preference oracle."""

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        """Probabilities [N] that ``left`` beats ``right``."""
        ...


class Scorer(Protocol):
    """A pointwise reward."""

    def score(self, prompts: list[str], responses: list[str]) -> Tensor:
        """Scores [N]."""
        ...


Measure = Callable[[torch.nn.Module], Mapping[str, float]]
"""A policy -> figures of it by name."""
