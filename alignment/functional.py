"""The few sums that losses share: pairs, groups, win rates, rank weights.

Shape letters: ``B`` prompts, ``G`` completions of a prompt, ``T`` tokens.

Whether responses were sampled or enumerated is decided here and nowhere else. Sampled responses (``weights_BG`` is
``None``): averages over pairs run over ``i != j``, which is unbiased for i.i.d. samples. Enumerated responses
(``weights_BG`` are their probabilities): sums over pairs run over all ``i, j`` including ``i = j``, and expectations
are exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.types import LossInputs, LossOutput


def differences(values_BG: Tensor) -> Tensor:
    """``values_i - values_j`` for all ordered pairs, [B, G, G]."""
    return values_BG[:, :, None] - values_BG[:, None, :]


def response_weights(x: LossInputs) -> Tensor:
    """What each response counts for in an average over responses, [B, G]; sums to 1 over a group that has any."""
    weights_BG = x.valid_BG.to(x.logps_BG.dtype)
    if x.weights_BG is not None:
        weights_BG = weights_BG * x.weights_BG.detach()
    return _normalised(weights_BG, dims=(1,))


def pair_weights(x: LossInputs, asked_BGG: Tensor | None = None) -> Tensor:
    """What each ordered pair counts for in an average, [B, G, G]; symmetric, sums to 1 or, without a pair, to 0.

    Args:
        x: the masks and the sampling probabilities.
        asked_BGG: true where the pair was compared; ``None`` for all.
    """
    weights_BG = x.valid_BG.to(x.logps_BG.dtype)
    if x.weights_BG is not None:
        weights_BG = weights_BG * x.weights_BG.detach()
    weights_BGG = weights_BG[:, :, None] * weights_BG[:, None, :]
    if x.weights_BG is None:
        off_diagonal_GG = ~torch.eye(weights_BG.shape[1], dtype=torch.bool, device=weights_BG.device)
        weights_BGG = weights_BGG * off_diagonal_GG
    if asked_BGG is not None:
        weights_BGG = weights_BGG * asked_BGG
    return _normalised(weights_BGG, dims=(1, 2))


def comparison_weights(x: LossInputs) -> tuple[Tensor, Tensor]:
    """Probability that a drawn pair is (i, j) and that i won it.

    Returns:
        ``wins_BGG``, which sums to 1 over a prompt with a comparison (so that for one labelled pair it is 1 at
        [winner, loser]), and ``weight_B``: 1, or 0 for a prompt without a comparison.
    """
    prefs_BGG = x.prefs_BGG
    asked_BGG = ~prefs_BGG.isnan()
    weights_BGG = pair_weights(x, asked_BGG)
    # The weights are symmetric, so each unordered pair appears twice: P_ij + P_ji = 1 gives it its weight once.
    wins_BGG = 2.0 * weights_BGG * torch.where(asked_BGG, prefs_BGG, 0.0)
    return wins_BGG, (weights_BGG.sum((1, 2)) > 0).to(wins_BGG.dtype)


def comparison_loss(x: LossInputs, loss_BGG: Tensor) -> LossOutput:
    """Expectation over labelled pairs of a loss ``loss_BGG[b, i, j]`` for "i was chosen, j was rejected"."""
    wins_BGG, weight_B = comparison_weights(x)
    # Pairs that nobody compared may hold infinities; 0 * inf would be nan.
    loss_B = torch.where(wins_BGG > 0, wins_BGG * loss_BGG, 0.0).sum((1, 2))
    return LossOutput(loss_B=loss_B, weight_B=weight_B)


def regression_loss(x: LossInputs, advantages_BG: Tensor, targets_BGG: Tensor, asked_BGG: Tensor | None) -> LossOutput:
    """Mean over pairs of ``(h_ij - t_ij)^2`` with ``h_ij = advantages_i - advantages_j``: Lemma R.

    The lemma stands in docs/methods/README.md: which policy minimises this, for which pairs and targets.

    Args:
        x: masks and sampling probabilities.
        advantages_BG: log pi minus the anchor, in nats.
        targets_BGG: antisymmetric targets ``2c (P_ij - 1/2)``, in nats.
        asked_BGG: where targets exist; ``None`` for all.

    Returns:
        The loss, with ``target_attainment`` = mean(h t) / mean(t^2): near 0 throughout training means that the target
        is out of reach; at an exact optimum it is at most 1, and 1 only where preferences are additive.
    """
    weights_BGG = pair_weights(x, asked_BGG)
    targets_BGG = torch.where(weights_BGG > 0, targets_BGG, 0.0)
    h_BGG = differences(advantages_BG)
    loss_B = (weights_BGG * (h_BGG - targets_BGG).square()).sum((1, 2))
    attained_B = (weights_BGG * h_BGG * targets_BGG).sum((1, 2))
    wanted_B = (weights_BGG * targets_BGG.square()).sum((1, 2))
    return LossOutput(
        loss_B=loss_B,
        weight_B=(weights_BGG.sum((1, 2)) > 0).to(loss_B.dtype),
        metrics={"target_attainment": _ratio(attained_B, wanted_B).detach()},
    )


def preference_regression(x: LossInputs, advantages_BG: Tensor, *, target: float) -> LossOutput:
    """Regression of within-pair differences on ``2c (P_ij - 1/2)``; hard labels give ``(h - c)^2`` (Lemma R).

    Args:
        x: masks, preferences and sampling probabilities.
        advantages_BG: log pi minus the anchor, in nats.
        target: c, in nats.
    """
    prefs_BGG = x.prefs_BGG
    return regression_loss(x, advantages_BG, 2.0 * target * (prefs_BGG - 0.5), ~prefs_BGG.isnan())


def win_regression(x: LossInputs, advantages_BG: Tensor, *, target: float) -> LossOutput:
    """Regression of within-pair differences on ``2c (P(y_i > mu) - P(y_j > mu))`` (Lemma R, with an opponent mu).

    Args:
        x: masks, win probabilities against the opponent, sampling probabilities.
        advantages_BG: log pi minus the anchor, in nats.
        target: c, in nats.
    """
    return regression_loss(x, advantages_BG, 2.0 * target * differences(x.wins_BG), None)


def policy_gradient_loss(x: LossInputs, returns_BG: Tensor) -> LossOutput:
    """``-mean_i SG[returns_i] log pi(y_i)``: its gradient is that of the expected return, where y ~ pi."""
    weights_BG = response_weights(x)
    loss_B = -(weights_BG * returns_BG.detach() * x.logps_BG).sum(1)
    return LossOutput(loss_B=loss_B, weight_B=(weights_BG.sum(1) > 0).to(loss_B.dtype))


def preference_metrics(x: LossInputs) -> dict[str, Tensor]:
    """What every preference method logs, [B] each, detached; empty where there is nothing to compare.

    ``accuracy``: probability that the chosen response of a labelled pair has the larger log-ratio to ``ref`` (the
    larger log-prob where the loss has no ``ref``), ties half; ``margin``: mean difference of those, in nats;
    ``accuracy_of_shorter``: the accuracy on pairs whose chosen response has fewer tokens; ``accuracy_absolute``:
    probability that the chosen response has the larger log-prob; ``undesirable``: share of pairs in the undesirable set
    of arXiv 2605.20834, ``delta_ref < delta < 0`` with delta = log pi(chosen) - log pi(rejected): the loss fell, and
    the rejected response is still the likelier one; both also ``_per_token``, which often disagrees;
    ``chosen_logps`` and ``rejected_logps``: summed log-probs, in nats; ``length_difference``: chosen minus rejected, in
    tokens. A prompt without such a comparison has ``nan``.
    """
    if x.feedback.prefs_KBGG is None or x.feedback.prefs_KBGG.shape[0] != 1:
        return {}
    wins_BGG, weight_B = comparison_weights(x)
    logps_BG = x.logps_BG.detach()
    has_ref = "ref" in x.anchors
    advantages_BGG = differences(logps_BG - x.anchor("ref") if has_ref else logps_BG)
    is_ahead_BGG = 0.5 + 0.5 * advantages_BGG.sign()
    longer_BGG = differences(x.lengths_BG.to(logps_BG.dtype))
    shorter_BGG = wins_BGG * (longer_BGG < 0)
    values = {
        "accuracy": (wins_BGG * is_ahead_BGG).sum((1, 2)),
        # 0 / 0 is nan: a prompt whose chosen responses are the longer ones has nothing to say.
        "accuracy_of_shorter": (shorter_BGG * is_ahead_BGG).sum((1, 2)) / shorter_BGG.sum((1, 2)),
        "margin": (wins_BGG * advantages_BGG).sum((1, 2)),
        "chosen_logps": (wins_BGG.sum(2) * logps_BG).sum(1),
        "rejected_logps": (wins_BGG.sum(1) * logps_BG).sum(1),
        "length_difference": (wins_BGG * longer_BGG).sum((1, 2)),
    }
    if has_ref:
        for form, sizes_BG in (("", torch.ones_like(logps_BG)), ("_per_token", x.lengths_BG)):
            delta_BGG = differences(per_token(logps_BG, sizes_BG))
            delta_ref_BGG = differences(per_token(x.anchor("ref"), sizes_BG))
            is_undesirable_BGG = (delta_ref_BGG < delta_BGG) & (delta_BGG < 0)
            values[f"accuracy_absolute{form}"] = (wins_BGG * (0.5 + 0.5 * delta_BGG.sign())).sum((1, 2))
            values[f"undesirable{form}"] = (wins_BGG * is_undesirable_BGG).sum((1, 2))
    return {name: torch.where(weight_B > 0, value_B, torch.nan) for name, value_B in values.items()}


def group_wins(prefs_BGG: Tensor, valid_BG: Tensor, weights_BG: Tensor | None, *, include_self: bool = False) -> Tensor:
    """Win probability of each response against the rest of its group, [B, G] in [0, 1].

    Args:
        prefs_BGG: ``P(y_i > y_j)``, diagonal 1/2.
        valid_BG: false for padding.
        weights_BG: probabilities of enumerated responses (the exact win rate), or ``None`` for samples.
        include_self: count the comparison of a response with itself, as SPPO's released code does; the centred win
            rate is then (G - 1) / G of the unbiased one.
    """
    opponents_BG = valid_BG.to(prefs_BGG.dtype)
    if weights_BG is not None:
        opponents_BG = opponents_BG * weights_BG
    opponents_BGG = opponents_BG[:, None, :].expand_as(prefs_BGG)
    if weights_BG is None and not include_self:
        off_diagonal_GG = ~torch.eye(prefs_BGG.shape[1], dtype=torch.bool, device=prefs_BGG.device)
        opponents_BGG = opponents_BGG * off_diagonal_GG
    wins_BG = (torch.where(opponents_BGG > 0, prefs_BGG, 0.0) * opponents_BGG).sum(2)
    # A response without an opponent beats nobody and loses to nobody.
    return torch.where(opponents_BGG.sum(2) > 0, _ratio(wins_BG, opponents_BGG.sum(2)), 0.5)


def ranks(scores_BG: Tensor, valid_BG: Tensor) -> Tensor:
    """1-based position of each response when sorted by score, highest first; ties keep input order; padding last."""
    order_BG = torch.where(valid_BG, -scores_BG.detach(), torch.inf).argsort(dim=1, stable=True)
    return order_BG.argsort(dim=1) + 1


def log1mexp(a: Tensor) -> Tensor:
    """``log(1 - e^a)`` for ``a < 0`` without cancellation; at ``a = 0`` the value and the gradient stay finite."""
    # Below log 2 the two forms lose accuracy on opposite sides; the clamp keeps the unused branch out of the gradient.
    a = a.clamp(max=-torch.finfo(a.dtype).eps)
    near = a > -0.6931471805599453
    log_of_expm1 = torch.log(-torch.expm1(torch.where(near, a, -1.0)))
    log1p_of_exp = torch.log1p(-torch.exp(torch.where(near, -1.0, a)))
    return torch.where(near, log_of_expm1, log1p_of_exp)


def softplus(z: Tensor) -> Tensor:
    """``log(1 + e^z) = -log sigmoid(-z)``, without overflow."""
    # torch's softplus switches to the identity at 20, an error of 2e-9 that float64 tests would see.
    return -F.logsigmoid(-z)


def per_token(values_BG: Tensor, lengths_BG: Tensor) -> Tensor:
    """Sums over a completion turned into means over its tokens, [B, G]."""
    # Padded completions have no tokens; their sums are zero and stay so.
    return values_BG / lengths_BG.clamp(min=1)


def _normalised(weights: Tensor, dims: tuple[int, ...]) -> Tensor:
    return _ratio(weights, weights.sum(dims, keepdim=True))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient that is 0 where the denominator is 0 (an empty group)."""
    empty = denominator == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))
