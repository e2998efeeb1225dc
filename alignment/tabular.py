"""The reference loop: any method's own loss, trained on an exact game by descent on softmax logits, in float64.

Shape letters: ``X`` contexts, ``A`` actions, ``I`` iterations, ``K`` oracles; rows of loss inputs are ``B`` by ``G``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from alignment.errors import UserError
from alignment.functional import group_wins
from alignment.games import PanelGame, PreferenceGame
from alignment.games.updates import geometric_mixture
from alignment.optim import ExtraGradient
from alignment.types import Behaviour, Ema, Feedback, Frozen, LossInputs, Method, Past, Player, Previous

OptimizerName = Literal["sgd", "natural", "adam"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularRun:
    """What a run on a game leaves.

    Attributes:
        policy_XA: the last policy, probabilities.
        average_XA: the mean of the policies after each iteration, start excluded.
        gap_IX: duality gap of the policy; row 0 is the start, then one row per iteration. It is the regularised gap
            where the game has ``tau > 0``; ``nan`` for games of several oracles.
        average_gap_IX: the gap of the running average; row 0 is the start.
    """

    policy_XA: Tensor
    average_XA: Tensor
    gap_IX: Tensor
    average_gap_IX: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What one gradient sees: which responses, what the oracle said, how probable each row is.

    ``context_B`` and ``actions_BG`` are ``None`` where every row is a context with all its actions.
    """

    feedback: Feedback
    context_B: Tensor | None = None
    actions_BG: Tensor | None = None
    weights_BG: Tensor | None = None
    probability_B: Tensor | None = None


def run_tabular(
    method: Method,
    game: PreferenceGame | PanelGame,
    *,
    lr: float,
    iterations: int,
    inner_steps: int | None = None,
    behaviour_XA: Tensor | None = None,
    init_XA: Tensor | None = None,
    optimizer: OptimizerName = "sgd",
    samples: int | None = None,
    num_completions: int = 2,
    lengths_XA: Tensor | None = None,
    seed: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TabularRun:
    """Train a method's own loss on a game, with exact expectations or from samples.

    Every context has its own logits and losses are summed over contexts, so ``lr`` means the same for one game and
    for fifty. With exact expectations responses are enumerated and weighted by the sampler's probabilities.

    Args:
        method: any method; what it needs decides who samples, who is the opponent, and which anchors advance when.
        game: one oracle, or a panel for a method with a welfare function.
        lr: step size on logits.
        iterations: full iterations; an iteration has ``fits * inner_steps * stages`` gradients.
        inner_steps: optimizer steps between two anchor advances; default the method's own.
        behaviour_XA: who samples the responses; default what the method needs (uniform where any full-support sampler
            keeps the theory, the reference for data sets).
        init_XA: start, probabilities; default the reference.
        optimizer: ``natural`` preconditions by the Fisher information of the softmax, which makes a policy gradient
            a mirror-descent (Hedge) step.
        samples: rows drawn per context and gradient; ``None`` for exact expectations.
        num_completions: responses per sampled row.
        lengths_XA: number of tokens of each action; default 1.
        seed: of the samples; required with ``samples``.
        progress: called after each iteration with its number.

    Returns:
        The last and the average policy with their duality gaps.

    Raises:
        UserError: if the method cannot run on this game, or samples are asked for without a seed.

    Example:
        >>> from alignment.games import rock_paper_scissors
        >>> from alignment.methods import build_method
        >>> egpo = build_method({"name": "egpo", "tau": 0.05})
        >>> run = run_tabular(egpo, rock_paper_scissors(tau=0.05), lr=0.0375, iterations=1000)
        >>> bool(run.gap_IX[-1].max() < 1e-12)
        True
    """
    loop = _Loop(
        method,
        game,
        behaviour_XA=behaviour_XA,
        init_XA=game.ref_XA if init_XA is None else init_XA,
        optimizer=optimizer,
        lr=lr,
        samples=samples,
        num_completions=num_completions,
        lengths_XA=torch.ones_like(game.ref_XA) if lengths_XA is None else lengths_XA,
        seed=seed,
    )
    inner_steps = method.needs.inner_steps if inner_steps is None else inner_steps
    policy_XA = loop.policy()
    total_XA = torch.zeros_like(policy_XA)
    gaps, average_gaps = [_gap(game, policy_XA)], [_gap(game, policy_XA)]
    for iteration in range(1, iterations + 1):
        loop.iterate(inner_steps)
        policy_XA = loop.policy()
        total_XA = total_XA + policy_XA
        gaps.append(_gap(game, policy_XA))
        average_gaps.append(_gap(game, total_XA / iteration))
        if progress is not None:
            progress(iteration)
    return TabularRun(
        policy_XA=policy_XA,
        average_XA=total_XA / max(iterations, 1),
        gap_IX=torch.stack(gaps),
        average_gap_IX=torch.stack(average_gaps),
    )


def _gap(game: PreferenceGame | PanelGame, policy_XA: Tensor) -> Tensor:
    if isinstance(game, PanelGame):
        return torch.full((len(policy_XA),), torch.nan, dtype=torch.float64)
    return game.duality_gap(policy_XA)


class _Loop:
    """The state of a run: logits, frozen copies of logits, the optimizer, the generator."""

    def __init__(
        self,
        method: Method,
        game: PreferenceGame | PanelGame,
        *,
        behaviour_XA: Tensor | None,
        init_XA: Tensor,
        optimizer: OptimizerName,
        lr: float,
        samples: int | None,
        num_completions: int,
        lengths_XA: Tensor,
        seed: int | None,
    ) -> None:
        needs = method.needs
        if isinstance(game, PanelGame) != (needs.num_oracles == "many"):
            raise UserError(f"expected a game with {needs.num_oracles} oracle(s), got {type(game).__name__}")
        if samples is not None and seed is None:
            raise UserError("expected a seed with samples, got none")
        if samples is None and needs.micro_batch_statistics and not needs.mismatched:
            raise UserError("the loss couples rows of a batch, so it has no exact expectation: set samples and seed")
        for spec in needs.anchors:
            if isinstance(spec, Player):
                raise UserError(f"anchor '{spec.name}' is another player's policy; run players in turn, one loss each")
        self.method, self.needs, self.game = method, needs, game
        self.behaviour_XA = behaviour_XA
        self.samples, self.num_completions = samples, num_completions
        self.lengths_XA = lengths_XA.to(torch.float64)
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.natural = optimizer == "natural"
        self.ref_XA = game.ref_XA.log()
        self.theta_XA = torch.nn.Parameter(init_XA.to(torch.float64).log().clone())
        base = torch.optim.Adam([self.theta_XA], lr=lr) if optimizer == "adam" else torch.optim.SGD([self.theta_XA], lr)
        self.optimizer = ExtraGradient(base)
        start_XA = self.theta_XA.detach().clone()
        self.history = [start_XA] * max((spec.window for spec in needs.anchors if isinstance(spec, Past)), default=1)
        self.prev_XA = start_XA  # the policy at the start of the iteration
        self.center_XA = start_XA  # where the next fit starts and what it is anchored to (fits > 1)
        self.target_XA = start_XA  # the slow copy
        self.welfare_state = needs.welfare.init(self._num_oracles()) if needs.welfare is not None else None
        self.contexts_X = torch.arange(len(self.theta_XA))

    def policy(self) -> Tensor:
        """The current policy, probabilities."""
        return self.theta_XA.detach().softmax(-1)

    def iterate(self, inner_steps: int) -> None:
        """One full iteration: all fits, all inner steps, both stages; then the anchors advance."""
        self.prev_XA = self.theta_XA.detach().clone()
        self.history = [self.prev_XA, *self.history[:-1]]
        for fit in range(self.needs.fits):
            if self.needs.fits > 1:
                self._set_theta(self.center_XA)
            else:
                self.center_XA = self.prev_XA
            fixed_rows = self._rows() if self.needs.schedule != "online" and self.samples is None else None
            for _ in range(inner_steps):
                self._step(fixed_rows)
            if self.needs.fits > 1 and fit == 0:
                self.center_XA = self.theta_XA.detach().clone()
        decay = next((spec.decay for spec in self.needs.anchors if isinstance(spec, Ema)), 0.0)
        self.target_XA = decay * self.target_XA + (1.0 - decay) * self.theta_XA.detach()

    def _step(self, rows: _Rows | None) -> None:
        for stage in range(self.needs.stages):
            self.optimizer.stage = stage if self.needs.stages > 1 else None
            stage_rows = self._rows() if rows is None else rows
            if stage > 0:
                self.optimizer.rewind()
            self.optimizer.zero_grad()
            self._loss(stage_rows).backward()
            if self.natural:
                self._precondition()
            self.optimizer.step()

    def _precondition(self) -> None:
        # The Fisher information of softmax logits is diag(pi) - pi pi^T; gradients sum to 0, where it acts as diag(pi).
        assert self.theta_XA.grad is not None
        self.theta_XA.grad /= self.policy()

    def _set_theta(self, theta_XA: Tensor) -> None:
        with torch.no_grad():
            self.theta_XA.copy_(theta_XA)

    # Who samples, against whom -------------------------------------------------------------------------------------

    def _sampler(self) -> Tensor:
        if self.behaviour_XA is not None:
            return self.behaviour_XA.to(torch.float64)
        if self.needs.full_support or self.needs.sampler == "enumerate":
            return torch.full_like(self.ref_XA, 1.0 / self.ref_XA.shape[1])
        if self.needs.sampler == "dataset":
            return self.ref_XA.exp()
        if self.needs.sampler == "prev":
            return self.prev_XA.softmax(-1)
        if self.needs.sampler == "target":
            return self.target_XA.softmax(-1)
        if self.needs.sampler == "mixture":
            return geometric_mixture(self.policy(), self.game.ref_XA, mix=self.needs.mix)
        return self.policy()

    def _opponent(self, sampler_XA: Tensor) -> Tensor:
        if self.needs.opponent == "fresh":
            return self.policy()
        if self.needs.opponent == "target":
            return self.target_XA.softmax(-1)
        if self.needs.opponent == "mixture":
            return geometric_mixture(self.policy(), self.game.ref_XA, mix=self.needs.mix)
        if self.needs.opponent == "ref":
            return self.game.ref_XA
        if self.needs.opponent == "past":
            return torch.stack([past_XA.softmax(-1) for past_XA in self.history]).mean(0)
        return sampler_XA

    # What the oracle says ------------------------------------------------------------------------------------------

    def _num_oracles(self) -> int:
        return len(self.game.utilities_KXA) if isinstance(self.game, PanelGame) else 1

    def _prefs(self) -> Tensor | None:
        return self.game.prefs_KXAA if isinstance(self.game, PanelGame) else self.game.prefs_XAA[None]

    def _wins(self, opponent_XA: Tensor) -> Tensor:
        """Utility of every action against the opponent, [K, X, A]; a panel of scores has them as they are."""
        prefs_KXAA = self._prefs()
        if prefs_KXAA is None:
            assert isinstance(self.game, PanelGame)
            return self.game.utilities_KXA
        return torch.einsum("kxab,xb->kxa", prefs_KXAA, opponent_XA)

    def _rows(self) -> _Rows:
        sampler_XA = self._sampler()
        rows = self._exact_rows(sampler_XA) if self.samples is None else self._sampled_rows(sampler_XA, self.samples)
        if self.needs.welfare is None or self.welfare_state is None:
            return rows
        means_K = torch.einsum("kxa,xa->k", self._wins(self._opponent(sampler_XA)), self.policy()) / len(sampler_XA)
        self.welfare_state = self.needs.welfare.update(self.welfare_state, means_K)
        combined = self.needs.welfare.combine(rows.feedback, self.welfare_state)
        return replace(rows, feedback=combined)

    def _exact_rows(self, sampler_XA: Tensor) -> _Rows:
        """Every context with all its actions, or every comparison as a row of its own where a loss reads scores."""
        prefs_KXAA = self._prefs()
        if self.needs.feedback == "wins":
            return _Rows(feedback=Feedback(wins_KBG=self._wins(self._opponent(sampler_XA))), weights_BG=sampler_XA)
        if prefs_KXAA is None:
            raise UserError(f"the method reads {self.needs.feedback}; the panel has scores only")
        if self.needs.feedback in ("pairs", "prefs"):
            return _Rows(feedback=Feedback(prefs_KBGG=prefs_KXAA), weights_BG=sampler_XA)
        if self.needs.mismatched:
            return self._exact_labels(prefs_KXAA[0], sampler_XA)
        return self._exact_lists(prefs_KXAA[0], sampler_XA)

    def _exact_lists(self, prefs_XAA: Tensor, sampler_XA: Tensor) -> _Rows:
        """All ordered pairs of different actions as lists of two, scores 1 and 0, by the probability of that label."""
        num_contexts, num_actions = sampler_XA.shape
        first_N, second_N = (~torch.eye(num_actions, dtype=torch.bool)).nonzero(as_tuple=True)
        context_B = self.contexts_X.repeat_interleave(len(first_N))
        actions_BG = torch.stack([first_N, second_N], 1).repeat(num_contexts, 1)
        drawn_B = sampler_XA[context_B[:, None], actions_BG].prod(1)
        won_B = prefs_XAA[context_B, actions_BG[:, 0], actions_BG[:, 1]]
        scores_BG = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(len(context_B), 2)
        return _Rows(
            feedback=Feedback(scores_KBG=scores_BG[None]),
            context_B=context_B,
            actions_BG=actions_BG,
            probability_B=2.0 * drawn_B * won_B,
        )

    def _exact_labels(self, prefs_XAA: Tensor, sampler_XA: Tensor) -> _Rows:
        """Every action once as desirable and once as undesirable, by its win rate against the sampler."""
        num_contexts, num_actions = sampler_XA.shape
        context_B = self.contexts_X.repeat_interleave(2 * num_actions)
        actions_BG = torch.arange(num_actions).repeat(2 * num_contexts)[:, None]
        label_B = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat_interleave(num_actions).repeat(num_contexts)
        wins_XA = torch.einsum("xab,xb->xa", prefs_XAA, sampler_XA)
        wins_B = wins_XA[context_B, actions_BG[:, 0]]
        return _Rows(
            feedback=Feedback(scores_KBG=label_B[None, :, None]),
            context_B=context_B,
            actions_BG=actions_BG,
            probability_B=sampler_XA[context_B, actions_BG[:, 0]] * torch.where(label_B > 0, wins_B, 1.0 - wins_B),
        )

    def _sampled_rows(self, sampler_XA: Tensor, samples: int) -> _Rows:
        """``samples`` groups per context, i.i.d. from the sampler; a group meets one sample of the opponent."""
        num_completions = 1 if self.needs.mismatched else self.num_completions
        context_B = self.contexts_X.repeat_interleave(samples)
        drawn = torch.multinomial(sampler_XA, samples * num_completions, replacement=True, generator=self.generator)
        actions_BG = drawn.reshape(-1, num_completions)
        prefs_KXAA = self._prefs()
        if self.needs.feedback == "wins" and self.needs.opponent != "group":
            return self._sampled_wins(sampler_XA, samples, context_B, actions_BG)
        if prefs_KXAA is None:
            raise UserError(f"the method reads {self.needs.feedback}; the panel has scores only")
        prefs_KBGG = prefs_KXAA[:, context_B[:, None, None], actions_BG[:, :, None], actions_BG[:, None, :]]
        if self.needs.feedback == "wins":
            valid_BG = torch.ones_like(actions_BG, dtype=torch.bool)
            wins_KBG = torch.stack([group_wins(prefs_BGG, valid_BG, None) for prefs_BGG in prefs_KBGG])
            feedback = Feedback(wins_KBG=wins_KBG)
        elif self.needs.feedback == "prefs":
            feedback = Feedback(prefs_KBGG=prefs_KBGG)
        elif self.needs.feedback == "pairs":
            feedback = Feedback(prefs_KBGG=self._labels(prefs_KBGG))
        elif self.needs.mismatched:
            rival_B = torch.multinomial(sampler_XA, samples, replacement=True, generator=self.generator).reshape(-1)
            won_B = prefs_KXAA[0, context_B, actions_BG[:, 0], rival_B]
            feedback = Feedback(scores_KBG=torch.bernoulli(won_B, generator=self.generator)[None, :, None])
        else:
            labels_BGG = self._labels(prefs_KBGG)[0]
            feedback = Feedback(scores_KBG=labels_BGG.mean(2)[None])
        return _Rows(feedback=feedback, context_B=context_B, actions_BG=actions_BG)

    def _sampled_wins(self, sampler_XA: Tensor, samples: int, context_B: Tensor, actions_BG: Tensor) -> _Rows:
        prefs_KXAA = self._prefs()
        if prefs_KXAA is None:
            wins_KBG = self._wins(sampler_XA)[:, context_B[:, None], actions_BG]
        else:
            opponent_XA = self._opponent(sampler_XA)
            rival_B = torch.multinomial(opponent_XA, samples, replacement=True, generator=self.generator).reshape(-1)
            wins_KBG = prefs_KXAA[:, context_B[:, None], actions_BG, rival_B[:, None]]
        return _Rows(feedback=Feedback(wins_KBG=wins_KBG), context_B=context_B, actions_BG=actions_BG)

    def _labels(self, prefs_KBGG: Tensor) -> Tensor:
        """Hard labels drawn from the oracle, antisymmetric, 1/2 on the diagonal."""
        upper_KBGG = torch.bernoulli(prefs_KBGG, generator=self.generator).triu(1)
        lower_KBGG = (1.0 - upper_KBGG).transpose(-1, -2).tril(-1)
        return upper_KBGG + lower_KBGG + 0.5 * torch.eye(prefs_KBGG.shape[-1], dtype=prefs_KBGG.dtype)

    # What the loss sees --------------------------------------------------------------------------------------------

    def _loss(self, rows: _Rows) -> Tensor:
        inputs = self.inputs(rows)
        output = self.method.loss(inputs)
        if rows.context_B is None:
            return output.loss_B.sum()
        counts_B = output.weight_B if rows.probability_B is None else output.weight_B * rows.probability_B
        zeros_X = torch.zeros(len(self.theta_XA), dtype=torch.float64)
        totals_X = zeros_X.index_add(0, rows.context_B, counts_B)
        sums_X = zeros_X.index_add(0, rows.context_B, counts_B * output.loss_B)
        return (sums_X / totals_X.clamp(min=torch.finfo(torch.float64).tiny)).sum()

    def inputs(self, rows: _Rows) -> LossInputs:
        """Log-probs of the rows under the policy and its anchors."""
        log_policy_XA = self.theta_XA.log_softmax(-1)
        logps_BG = _take(log_policy_XA, rows)
        valid_BG = torch.ones(logps_BG.shape, dtype=torch.bool)
        anchors_XA = self._anchors()
        anchors = {name: _take(values_XA, rows) for name, values_XA in anchors_XA.items()}
        is_token_level = self.needs.per_token or self.needs.confidence
        return LossInputs(
            logps_BG=logps_BG,
            lengths_BG=_take(self.lengths_XA, rows),
            valid_BG=valid_BG,
            feedback=rows.feedback,
            weights_BG=rows.weights_BG,
            anchors=anchors,
            token_logps_BGT=logps_BG[..., None] if is_token_level else None,
            token_mask_BGT=valid_BG[..., None] if is_token_level else None,
            token_anchors={name: anchor_BG[..., None] for name, anchor_BG in anchors.items()} if is_token_level else {},
            token_excess_BGT=_take(_excess(log_policy_XA.detach()), rows)[..., None] if self.needs.confidence else None,
            mismatched_logps_B=self._mismatched(log_policy_XA.detach(), rows) if self.needs.mismatched else None,
            mismatched_anchors={name: self._mismatched(values_XA, rows) for name, values_XA in anchors_XA.items()}
            if self.needs.mismatched
            else {},
        )

    def _mismatched(self, log_policy_XA: Tensor, rows: _Rows) -> Tensor:
        """Expected log-prob of another row's completion, whose exact distribution is the sampler's."""
        return (self._sampler() * log_policy_XA).sum(-1)[rows.context_B]

    def _anchors(self) -> dict[str, Tensor]:
        """Log-policies [X, A] of every anchor that the card declares, and of no other."""
        columns: dict[str, Tensor] = {}
        for spec in self.needs.anchors:
            if isinstance(spec, Frozen):
                columns[spec.name] = self.ref_XA
            elif isinstance(spec, Previous):
                columns[spec.name] = self.center_XA.log_softmax(-1)
            elif isinstance(spec, Past):
                columns |= zip(spec.columns(), (past_XA.log_softmax(-1) for past_XA in self.history), strict=True)
            elif isinstance(spec, Ema):
                columns[spec.name] = self.target_XA.log_softmax(-1)
            elif isinstance(spec, Behaviour):
                columns[spec.name] = self._sampler().log()
        return columns


def _excess(log_policy_XA: Tensor) -> Tensor:
    """``log pi(y) - log sum_v pi(v)^2``: how much surer than a typical sample."""
    return log_policy_XA - (2.0 * log_policy_XA).logsumexp(-1, keepdim=True)


def _take(values_XA: Tensor, rows: _Rows) -> Tensor:
    """Values [B, G] at the rows' contexts and actions."""
    if rows.context_B is None or rows.actions_BG is None:
        return values_XA
    return values_XA[rows.context_B[:, None], rows.actions_BG]
