"""Every method that samples estimates an exact gradient: averaged over all groups that could be drawn, without a bias.

One context with three actions is small enough to list every group of G responses, every J responses of the opponent and
every verdict of a single annotator, each with its probability: equality is to rounding, not within sampling error. The
exact gradient is that of the expected loss in :data:`EXPECTED`, written from the formulas of docs/methods/ and not from
our code. A new method that samples joins :data:`EXPECTED`, or :data:`UNPROVEN` with its reason.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.config import card_needs
from alignment.functional import group_wins
from alignment.games.updates import geometric_mixture
from alignment.methods import build_method, method_names
from alignment.types import Feedback, LossInputs, Method
from tests.methods.regression import minimiser, random_policy, random_preferences

A = 3
PI, REF, PREV, OLDER, TARGET = (random_policy(A, seed) for seed in range(5))
PREFS_KAA = torch.stack([random_preferences(A, seed) for seed in (0, 8)])
ANCHORS = {"ref": REF, "prev": PREV, "target": TARGET, "past_0": PREV, "past_1": OLDER, "behaviour": PI}

# Who samples and who is the opponent, as probabilities.
SAMPLERS = {
    "policy": PI.exp(),
    "prev": PREV.exp(),
    "mixture": geometric_mixture(PI.exp()[None], REF.exp()[None], mix=0.25)[0],
}
OPPONENTS = {"fresh": PI.exp(), "target": TARGET.exp(), "ref": REF.exp(), "mixture": SAMPLERS["mixture"]}

Objective = Callable[[Tensor], Tensor]
"""From log-probs [A] of the policy to its expected loss, with samplers and opponents as constants."""


def pair_regression(sampler_A: Tensor, anchor_A: Tensor, targets_AA: Tensor) -> Objective:
    """``sum_ij s_i s_j (h_ij - t_ij)^2``."""

    def objective(log_pi_A: Tensor) -> Tensor:
        advantages_A = log_pi_A - anchor_A
        h_AA = advantages_A[:, None] - advantages_A[None, :]
        return (torch.outer(sampler_A, sampler_A) * (h_AA - targets_AA) ** 2).sum()

    return objective


def preference_pairs(sampler: str, anchor_A: Tensor, scale: float) -> Objective:
    return pair_regression(SAMPLERS[sampler], anchor_A, scale * (PREFS_KAA[0] - 0.5))


def win_pairs(sampler_A: Tensor, anchor_A: Tensor, scale: float) -> Objective:
    """Targets are differences of win rates against the current policy."""
    wins_A = PREFS_KAA[0] @ PI.exp()
    return pair_regression(sampler_A, anchor_A, scale * (wins_A[:, None] - wins_A[None, :]))


def regularised_value(wins_A: Tensor, strengths: Mapping[str, float]) -> Objective:
    """Minus ``sum_y pi(y) (P(y > mu) - sum_j kappa_j log pi/pi_j (y))``."""

    def objective(log_pi_A: Tensor) -> Tensor:
        penalty_A = sum((kappa * (log_pi_A - ANCHORS[name]) for name, kappa in strengths.items()), torch.zeros(A))
        return -(log_pi_A.exp() * (wins_A - penalty_A)).sum()

    return objective


def online_dpo(beta: float) -> Objective:
    def objective(log_pi_A: Tensor) -> Tensor:
        ratios_A = log_pi_A - REF
        margins_AA = ratios_A[:, None] - ratios_A[None, :]
        pairs_AA = torch.outer(PI.exp(), PI.exp())
        # A pair is drawn in either order, and its first response is chosen with probability P.
        return -(pairs_AA * 2.0 * PREFS_KAA[0] * torch.log(torch.sigmoid(beta * margins_AA))).sum()

    return objective


def sppo(eta: float) -> Objective:
    target_A = eta * (PREFS_KAA[0] @ PREV.exp() - 0.5)
    return lambda log_pi_A: (PREV.exp() * (log_pi_A - PREV - target_A) ** 2).sum()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method, the expected loss whose gradient it estimates, and who samples where any full support will do."""

    options: Mapping[str, Any]
    objective: Objective
    state: Tensor | None = None
    sampler_A: Tensor | None = None


WINS_A = {name: PREFS_KAA[0] @ opponent_A for name, opponent_A in {**OPPONENTS, "prev": PREV.exp()}.items()}
WINS_KA = PREFS_KAA @ REF.exp()
UNIFORM = torch.full((A,), 1.0 / A, dtype=torch.float64)
MIXED_ANCHOR = 0.3 / 0.5 * REF + (1 - 0.3 / 0.5) * PREV
BASE = {"name": "spo", "kappa_ref": 0.2}
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)

EXPECTED: dict[str, dict[str, Case]] = {
    "spo": {
        "plain": Case(options={}, objective=regularised_value(WINS_A["fresh"], {})),
        "regularised": Case(options={"kappa_ref": 0.2}, objective=regularised_value(WINS_A["fresh"], {"ref": 0.2})),
        # At the first step the ratio to the sampler is 1, inside every interval.
        "clipped": Case(
            options={"kappa_ref": 0.2, "clip": 0.1}, objective=regularised_value(WINS_A["fresh"], {"ref": 0.2})
        ),
    },
    "egpo": {
        "on policy": Case(options={"tau": 0.3}, objective=win_pairs(PI.exp(), REF, 1 / 0.3)),
        "uniform": Case(options={"tau": 0.3}, objective=win_pairs(UNIFORM, REF, 1 / 0.3), sampler_A=UNIFORM),
    },
    "omd": {"uniform": Case(options={"tau": 0.3}, objective=win_pairs(UNIFORM, REF, 1 / 0.3), sampler_A=UNIFORM)},
    "nash_md": {
        kl: Case(
            options={"tau": 0.3, "mix": 0.25, "kl": kl}, objective=regularised_value(WINS_A["mixture"], {"ref": 0.3})
        )
        for kl in ("reward_to_go", "sequence")
    },
    "nash_mp": {
        "": Case(
            options={"tau": 0.3, "eta": 0.5},
            objective=regularised_value(WINS_A["target"], {"ref": 0.3, "target": 0.6}),
        )
    },
    "nash_prox": {
        "": Case(
            options={"tau": 0.3, "eta": 0.5}, objective=regularised_value(WINS_A["fresh"], {"ref": 0.3, "target": 0.6})
        )
    },
    "online_ipo": {"": Case(options={"tau": 0.3}, objective=preference_pairs("policy", REF, 1 / 0.3))},
    "ipo_md": {"": Case(options={"tau": 0.3, "mix": 0.25}, objective=preference_pairs("mixture", REF, 1 / 0.3))},
    "online_dpo": {"": Case(options={"beta": 0.7}, objective=online_dpo(0.7))},
    "inpo": {"": Case(options={"tau": 0.3, "eta": 0.5}, objective=preference_pairs("prev", MIXED_ANCHOR, 1 / 0.5))},
    "mnpo": {
        "": Case(
            options={"eta": 0.5, "ref_weight": 0.2, "history_weights": [0.5, 0.3]},
            objective=preference_pairs("prev", 0.2 * REF + 0.5 * PREV + 0.3 * OLDER, 1 / 0.5),
        )
    },
    "sppo": {"": Case(options={"eta": 0.8}, objective=sppo(0.8))},
    "onpo": {"": Case(options={"eta": 0.8}, objective=preference_pairs("prev", PREV, 0.8))},
    # Given the state; that the state moves with the same samples is another matter, below.
    "maxmin": {
        "group_argmin": Case(
            options={"base": BASE, "mode": "group_argmin"},
            objective=regularised_value(WINS_KA[1], {"ref": 0.2}),
            state=torch.tensor([0.8, 0.2], dtype=torch.float64),
        ),
        "mirror": Case(
            options={"base": BASE, "mode": "mirror"},
            objective=regularised_value(WEIGHTS @ WINS_KA, {"ref": 0.2}),
            state=WEIGHTS,
        ),
    },
}

UNPROVEN: dict[str, str] = {}
"""Methods that sample and estimate no exact gradient -> why."""


def _outcomes(prefs_KNQ: Tensor) -> tuple[Tensor, Tensor]:
    """All verdicts 0 or 1 of K oracles on Q questions of each of N groups, and their probabilities.

    Returns:
        Verdicts [K, N * 2^(KQ), Q] and probabilities [N * 2^(KQ)].
    """
    num_oracles, num_groups, num_questions = prefs_KNQ.shape
    bits = itertools.product((0.0, 1.0), repeat=num_oracles * num_questions)
    verdicts_VKQ = torch.tensor(list(bits), dtype=torch.float64).reshape(-1, num_oracles, num_questions)
    prefs_NVKQ = prefs_KNQ.transpose(0, 1)[:, None].expand(-1, len(verdicts_VKQ), -1, -1)
    chances_NVKQ = torch.where(verdicts_VKQ > 0, prefs_NVKQ, 1.0 - prefs_NVKQ)
    verdicts_KBQ = verdicts_VKQ.permute(1, 0, 2).repeat(1, num_groups, 1)
    return verdicts_KBQ, chances_NVKQ.prod(-1).prod(-1).reshape(-1)


def listed(
    method: Method, sampler_A: Tensor, *, num_completions: int, num_opponents: int = 1, has_verdicts: bool = False
) -> tuple[Tensor, Feedback, Tensor]:
    """All groups that may be drawn and judged.

    Args:
        method: says what the oracle is asked.
        sampler_A: who draws the responses, independently.
        num_completions: G.
        num_opponents: J.
        has_verdicts: each question is decided by one annotator's verdict in place of the probability.

    Returns:
        Actions [B, G], feedback of one oracle or, for a method of many, of two, and the probability [B] of each row.
    """
    needs = method.needs
    prefs_KAA = PREFS_KAA if needs.num_oracles == "many" else PREFS_KAA[:1]
    is_group = needs.feedback != "wins" or needs.opponent == "group"
    opponent_A = sampler_A if is_group else OPPONENTS[needs.opponent]
    sizes = [num_completions, 0 if is_group else num_opponents]
    drawn_BN = torch.tensor(list(itertools.product(range(A), repeat=sum(sizes))))
    actions_BG, rivals_BJ = drawn_BN.split(sizes, dim=1)
    chance_B = sampler_A[actions_BG].prod(-1) * opponent_A[rivals_BJ].prod(-1)
    if is_group:
        first, second = torch.triu_indices(num_completions, num_completions, offset=1).tolist()
        asked_KBQ = prefs_KAA[:, actions_BG[:, first], actions_BG[:, second]]
    else:
        asked_KBQ = prefs_KAA[:, actions_BG[:, :, None], rivals_BJ[:, None, :]].flatten(-2)
    if has_verdicts:
        num_rows = len(chance_B)
        asked_KBQ, verdict_chance_B = _outcomes(asked_KBQ)
        repeats = len(verdict_chance_B) // num_rows
        actions_BG = actions_BG.repeat_interleave(repeats, 0)
        chance_B = chance_B.repeat_interleave(repeats) * verdict_chance_B
    if not is_group:
        wins_KBG = asked_KBQ.unflatten(-1, (num_completions, num_opponents)).mean(-1)
        return actions_BG, Feedback(wins_KBG=wins_KBG), chance_B
    prefs_KBGG = torch.full((*asked_KBQ.shape[:2], num_completions, num_completions), 0.5, dtype=torch.float64)
    prefs_KBGG[..., first, second], prefs_KBGG[..., second, first] = asked_KBQ, 1.0 - asked_KBQ
    if needs.feedback != "wins":
        return actions_BG, Feedback(prefs_KBGG=prefs_KBGG), chance_B
    valid_BG = torch.ones_like(actions_BG, dtype=torch.bool)
    return actions_BG, Feedback(wins_KBG=group_wins(prefs_KBGG[0], valid_BG, None)[None]), chance_B


def inputs(
    log_pi_A: Tensor, actions_BG: Tensor, feedback: Feedback, weights_BG: Tensor | None, anchors: Mapping[str, Tensor]
) -> LossInputs:
    logps_BG = log_pi_A[actions_BG]
    taken = {name: logps_A[actions_BG] for name, logps_A in anchors.items()}
    valid_BG = torch.ones_like(actions_BG, dtype=torch.bool)
    return LossInputs(
        logps_BG=logps_BG,
        lengths_BG=torch.ones_like(actions_BG),
        valid_BG=valid_BG,
        feedback=feedback,
        weights_BG=weights_BG,
        anchors=taken,
        token_logps_BGT=logps_BG[..., None],
        token_mask_BGT=valid_BG[..., None],
        token_anchors={name: values_BG[..., None] for name, values_BG in taken.items()},
    )


def sampled_gradient(
    method: Method,
    sampler_A: Tensor,
    *,
    combine: Callable[[Feedback], Feedback] = lambda feedback: feedback,
    anchors: Mapping[str, Tensor] = ANCHORS,
    **sizes: Any,
) -> Tensor:
    """Expectation over everything that is drawn of the gradient [A] of the method's loss, by listing it all."""
    actions_BG, feedback, chance_B = listed(method, sampler_A, **sizes)
    assert float(chance_B.sum()) == pytest.approx(1.0, abs=1e-12)
    theta_A = PI.clone().requires_grad_()
    output = method.loss(inputs(theta_A.log_softmax(-1), actions_BG, combine(feedback), None, anchors))
    # A batch divides by the sum of these: where they vary, its mean would be a ratio of expectations.
    assert bool((output.weight_B == 1).all())
    (grad_A,) = torch.autograd.grad((chance_B * output.loss_B).sum(), theta_A)
    return grad_A


def exact_gradient(objective: Objective, at_A: Tensor = PI) -> Tensor:
    theta_A = at_A.clone().requires_grad_()
    (grad_A,) = torch.autograd.grad(objective(theta_A.log_softmax(-1)), theta_A)
    return grad_A


def built(name: str, case: Case) -> tuple[Method, Tensor, Callable[[Feedback], Feedback]]:
    """The method, who samples for it, and how several oracles become one at the case's state."""
    method = build_method({"name": name, **case.options})
    sampler_A = SAMPLERS[method.needs.sampler] if case.sampler_A is None else case.sampler_A
    welfare, state = method.needs.welfare, case.state
    if welfare is None or state is None:
        return method, sampler_A, lambda feedback: feedback
    return method, sampler_A, lambda feedback: welfare.combine(feedback, state)


CASES = [
    pytest.param(name, case, id=f"{name} {label}".strip())
    for name, cases in EXPECTED.items()
    for label, case in cases.items()
]


def test_every_method_that_samples_is_proven() -> None:
    """Or says why not."""
    samples = {name for name in method_names() if card_needs(name).sampler != "dataset"}
    assert samples == EXPECTED.keys() | UNPROVEN.keys()
    assert all(UNPROVEN.values())


@pytest.mark.parametrize(("num_completions", "num_opponents"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("has_verdicts", [False, True], ids=["probabilities", "verdicts"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_sampled_gradient_has_no_bias(
    name: str, case: Case, has_verdicts: bool, num_completions: int, num_opponents: int
) -> None:
    """Over all groups (and all verdicts) the mean gradient is the exact one; 1e-10 is rounding in float64."""
    method, sampler_A, combine = built(name, case)
    found_A = sampled_gradient(
        method,
        sampler_A,
        combine=combine,
        num_completions=num_completions,
        num_opponents=num_opponents,
        # Two oracles, three responses and two rivals have 2^12 verdicts on each of 243 groups: the small groups do.
        has_verdicts=has_verdicts and (num_completions == 2 or method.needs.num_oracles == "one"),
    )
    exact_A = exact_gradient(case.objective)
    assert float(exact_A.norm()) > 1e-2, "a gradient worth estimating"
    torch.testing.assert_close(found_A, exact_A, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_enumerated_responses_give_the_exact_gradient(name: str, case: Case) -> None:
    """The same gradient where all responses carry their probabilities, which is what exact games train on."""
    method, sampler_A, combine = built(name, case)
    prefs_KAA = PREFS_KAA if method.needs.num_oracles == "many" else PREFS_KAA[:1]
    opponent_A = OPPONENTS.get(method.needs.opponent, sampler_A)
    feedback = (
        Feedback(wins_KBG=(prefs_KAA @ opponent_A)[:, None])
        if method.needs.feedback == "wins"
        else Feedback(prefs_KBGG=prefs_KAA[:, None])
    )
    theta_A = PI.clone().requires_grad_()
    x = inputs(theta_A.log_softmax(-1), torch.arange(A)[None], combine(feedback), sampler_A[None], ANCHORS)
    (found_A,) = torch.autograd.grad(method.loss(x).loss_B.sum(), theta_A)
    torch.testing.assert_close(found_A, exact_gradient(case.objective), rtol=0, atol=1e-10)


# Where there is a bias on purpose ------------------------------------------------------------------------------------


def test_the_lowest_oracle_of_each_response_is_a_lower_bound() -> None:
    """``sample_min`` estimates ``E min_k`` without bias, not ``min_k E``: a minimum is concave (Jensen).

    With J rivals it is the minimum of their mean win rates; J = 1 gives ``sum_y' ref(y') min_k P_k(y > y')``. Never
    above the minimum of the exact win rates, another gradient than theirs, and nearer to it with more rivals.
    """
    method = build_method({"name": "maxmin", "base": BASE, "mode": "sample_min"})
    welfare = method.needs.welfare
    assert welfare is not None

    def combine(feedback: Feedback) -> Feedback:
        return welfare.combine(feedback, torch.empty(0))

    exact_A = exact_gradient(regularised_value(WINS_KA.amin(0), {"ref": 0.2}))
    biases = []
    for num_opponents in (1, 2):
        sizes = {"num_completions": 2, "num_opponents": num_opponents}
        actions_BG, feedback, chance_B = listed(method, PI.exp(), **sizes)
        wins_KBG = combine(feedback).wins_KBG
        assert wins_KBG is not None
        is_first_BA = actions_BG[:, :1] == torch.arange(A)
        lowest_A = torch.einsum("b,ba,b->a", chance_B, is_first_BA.double(), wins_KBG[0, :, 0]) / PI.exp()
        assert bool((lowest_A <= WINS_KA.amin(0) + 1e-12).all())
        if num_opponents == 1:
            torch.testing.assert_close(lowest_A, PREFS_KAA.amin(0) @ REF.exp(), rtol=0, atol=1e-12)
        found_A = sampled_gradient(method, PI.exp(), combine=combine, **sizes)
        bounded_A = exact_gradient(regularised_value(lowest_A, {"ref": 0.2}))
        torch.testing.assert_close(found_A, bounded_A, rtol=0, atol=1e-10)
        biases.append(float((found_A - exact_A).norm()))
    assert biases[0] > biases[1] > 1e-3


@pytest.mark.parametrize(("mode", "option"), [("mirror", {"step": 0.5}), ("group_argmin", {"ema": 0.5})])
def test_weights_that_move_with_the_same_samples_are_biased(mode: str, option: dict[str, float]) -> None:
    """A batch's own means move the weights of its oracles before they are used: the product has another expectation.

    With a slower state the bias falls: to nothing for the argmin once no single batch can change who is worst.
    """

    def bias(option: dict[str, float], start_K: Tensor) -> float:
        method = build_method({"name": "maxmin", "base": BASE, "mode": mode, **option})
        welfare = method.needs.welfare
        assert welfare is not None
        actions_BG, feedback, chance_B = listed(method, PI.exp(), num_completions=2)
        wins_KBG = feedback.wins_KBG
        assert wins_KBG is not None
        total_A = torch.zeros(A, dtype=torch.float64)
        mean_A = torch.zeros(A, dtype=torch.float64)
        for b, chance in enumerate(chance_B):
            row = Feedback(wins_KBG=wins_KBG[:, b : b + 1])
            state_K = welfare.update(start_K, row.wins_KBG.mean((1, 2)))  # type: ignore[union-attr]
            for used_K, sums_A in ((state_K, total_A), (welfare.update(start_K, means(chance_B, wins_KBG)), mean_A)):
                theta_A = PI.clone().requires_grad_()
                x = inputs(theta_A.log_softmax(-1), actions_BG[b : b + 1], welfare.combine(row, used_K), None, ANCHORS)
                sums_A += chance * torch.autograd.grad(method.loss(x).loss_B.sum(), theta_A)[0]
        return float((total_A - mean_A).norm())

    def means(chance_B: Tensor, wins_KBG: Tensor) -> Tensor:
        return torch.einsum("kbg,b->k", wins_KBG, chance_B) / wins_KBG.shape[-1]

    even_K = WEIGHTS if mode == "mirror" else torch.tensor([0.5, 0.5], dtype=torch.float64)
    slower = {"step": 0.05} if mode == "mirror" else {"ema": 0.95}
    apart_K = WEIGHTS if mode == "mirror" else torch.tensor([0.7, 0.3], dtype=torch.float64)
    assert bias(option, even_K) > 1e-3
    assert bias(slower, apart_K) < (0.15 if mode == "mirror" else 1e-9) * bias(option, even_K)


def test_ratios_correct_for_another_sampler_until_they_are_clipped() -> None:
    """Off policy, ratios to the sampler keep the gradient exact; those that the interval cuts make it another one.

    The win rate is then against the sampler, whose responses fill the group.
    """
    behaviour_A = (0.9 * PI + 0.1 * REF).log_softmax(-1)
    widest = float(((PI - behaviour_A).exp() - 1.0).abs().max())
    assert 0.02 < widest < 0.9
    exact_A = exact_gradient(regularised_value(PREFS_KAA[0] @ behaviour_A.exp(), {"ref": 0.2}))
    wide, narrow = (
        sampled_gradient(
            build_method({"name": "spo", "kappa_ref": 0.2, "clip": clip}),
            behaviour_A.exp(),
            anchors={**ANCHORS, "behaviour": behaviour_A},
            num_completions=2,
        )
        for clip in (1.1 * widest, 0.5 * widest)
    )
    torch.testing.assert_close(wide, exact_A, rtol=0, atol=1e-10)
    assert float((narrow - exact_A).norm()) > 1e-3


def test_leaving_out_groups_that_are_all_alike() -> None:
    """Of no consequence for pairs, whose difference is 0 there; SPPO, which reads each response, gets another loss.

    In the kept pairs the rival of a is never a: its win rate is too far from 1/2, by 1 / (1 - prev(a)).
    """
    sampler_A = PREV.exp()

    def gradient(name: str, case: Case, at_A: Tensor) -> Tensor:
        method = build_method({"name": name, **case.options})
        actions_BG, feedback, chance_B = listed(method, sampler_A, num_completions=2)
        kept_B = actions_BG[:, 0] != actions_BG[:, 1]
        theta_A = at_A.clone().requires_grad_()
        output = method.loss(inputs(theta_A.log_softmax(-1), actions_BG, feedback, None, ANCHORS))
        # Not divided by the share that is kept: that is a factor, and not what this is about.
        return torch.autograd.grad((kept_B * chance_B * output.loss_B).sum(), theta_A)[0]

    for name in ("inpo", "mnpo", "onpo"):
        case = EXPECTED[name][""]
        torch.testing.assert_close(gradient(name, case, PI), exact_gradient(case.objective), rtol=0, atol=1e-10)
    case = EXPECTED["sppo"][""]
    every_A = torch.arange(A)[None]
    wins = Feedback(wins_KBG=WINS_A["prev"][None, None])
    method = build_method({"name": "sppo", **case.options})
    best_A = minimiser(lambda log_pi_A: method.loss(inputs(log_pi_A, every_A, wins, sampler_A[None], ANCHORS)), A)
    assert float(exact_gradient(case.objective, at_A=best_A).norm()) < 1e-8
    assert float(gradient("sppo", case, best_A).norm()) > 1e-2
