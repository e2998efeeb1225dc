"""Constrained CPO: its limits (DPO, HyPO), the two-response example of the paper's analysis, overflow, diagnostics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor
from torch.autograd import grad

from alignment.errors import UserError
from alignment.functional import softplus
from alignment.methods.cpo import CPO, cpo_loss, log_reference_margin, reference_margin
from alignment.methods.dpo import DPO, dpo_loss
from alignment.methods.hypo import HyPO
from alignment.types import Feedback, LossInputs
from tests.methods.problem import Array, Problem, pair_inputs

OPTIONS = {"beta": 1.0, "gamma": 0.02}

# The two-response example of docs/invariants.md, rows 78 to 81: ref .1/.9, reward difference .3, beta .5.
BETA, DR = 0.5, 0.3
REF = [math.log(0.1), math.log(0.9)]
DELTA_REF = REF[0] - REF[1]


def expected_loss(log_pi_A: Array, problem: Problem) -> float:
    """softplus(Omega - beta hbar), log-probs per token, Omega from the reference's per-token probabilities."""
    ell_A = (log_pi_A - np.log(problem.ref_A)) / problem.lengths_A
    inverse_A = problem.ref_A ** (-1 / problem.lengths_A)
    omega_AA = np.minimum(OPTIONS["gamma"] * np.add.outer(inverse_A, inverse_A), 10.0)
    return problem.expect_pairs(np.logaddexp(0, omega_AA - OPTIONS["beta"] * np.subtract.outer(ell_A, ell_A)))


def summed(**options: object) -> CPO:
    """A card on summed log-probs, as the theory has it."""
    return CPO(**{"beta": BETA, "gamma": 0.02, "length_normalize": False, **options})


def group(seed: int) -> LossInputs:
    """Three prompts with ragged groups of up to four responses and soft labels."""
    generator = torch.Generator().manual_seed(seed)
    upper_BGG = torch.rand(3, 4, 4, generator=generator, dtype=torch.float64).triu(1)
    return LossInputs(
        logps_BG=(-10 * torch.rand(3, 4, generator=generator, dtype=torch.float64)).requires_grad_(),
        lengths_BG=torch.randint(1, 9, (3, 4), generator=generator),
        valid_BG=torch.tensor([[True, True, True, True], [True, True, True, False], [True, True, False, False]]),
        feedback=Feedback(prefs_KBGG=(upper_BGG + (1 - upper_BGG.mT).tril(-1) + 0.5 * torch.eye(4))[None]),
        anchors={"ref": -10 * torch.rand(3, 4, generator=generator, dtype=torch.float64)},
    )


def value_and_gradient(card: CPO | DPO, x: LossInputs) -> tuple[Tensor, Tensor]:
    loss_B = card.loss(x).loss_B
    return loss_B.detach(), grad(loss_B.sum(), x.logps_BG)[0]


def stationary_delta(margin: float, *, follows_label: bool) -> float:
    """Where the expected loss of a pair with P = sigmoid(dr) is stationary, by the roots of its autograd slope."""
    p = 1 / (1 + math.exp(-DR))
    omega = torch.tensor(margin, dtype=torch.float64)

    def slope(delta: float) -> float:
        h = torch.tensor(delta - DELTA_REF, dtype=torch.float64, requires_grad=True)
        flipped = omega if follows_label else -omega
        loss = p * cpo_loss(h, omega, beta=BETA) + (1 - p) * cpo_loss(-h, flipped, beta=BETA)
        return float(grad(loss, h)[0])

    return float(brentq(slope, -10, 10, xtol=1e-12))


@pytest.mark.parametrize("length_normalize", [False, True])
def test_without_multiplier_it_is_dpo(length_normalize: bool) -> None:
    """Invariant 75: bit-identical values and gradients, with the same length option."""
    x = group(0)
    value_B, slope_BG = value_and_gradient(CPO(beta=0.3, gamma=0.0, length_normalize=length_normalize), x)
    if length_normalize:
        x = replace(x, logps_BG=x.logps_BG / x.lengths_BG, anchors={"ref": x.anchors["ref"] / x.lengths_BG})
    dpo_value_B, dpo_slope_BG = value_and_gradient(DPO(beta=0.3), x)
    assert torch.equal(value_B, dpo_value_B)
    assert torch.equal(slope_BG, dpo_slope_BG / x.lengths_BG if length_normalize else dpo_slope_BG)


def test_hard_without_multiplier_is_hypo() -> None:
    """Invariant 76: beta h - beta max(0, -delta_ref) = beta (delta - max(0, delta_ref))."""
    x = group(1)
    value_B, slope_BG = value_and_gradient(summed(gamma=0.0, margin="hard"), x)
    hypo_B = HyPO(beta=BETA).loss(x).loss_B
    torch.testing.assert_close(value_B, hypo_B.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(slope_BG, grad(hypo_B.sum(), x.logps_BG)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("m0", [0.0, 0.5])
def test_hard_loss_below_log_2_certifies_the_margin(m0: float) -> None:
    """Invariant 76: L <= log 2 only where delta >= m0, whatever the reference says; HyPO is m0 = 0."""
    card = summed(margin="hard", m0=m0)
    for delta in np.linspace(-3, 3, 61):
        for delta_ref in (-4.0, 0.0, 4.0):
            x = pair_inputs(logps=[delta - 4, -4.0], ref=[delta_ref / 2 - 3, -delta_ref / 2 - 3])
            assert delta >= m0 - 1e-9 or card.loss(x).loss_B.item() > math.log(2)
    # With Omega = 0 and delta_ref <= m0 the certificate is tight.
    x = pair_inputs(logps=[m0 - 4, -4.0], ref=[-3.0, -2.0])
    assert summed(gamma=0.0, margin="hard", m0=m0).loss(x).loss_B.item() == pytest.approx(math.log(2), abs=1e-12)


def test_gradient() -> None:
    """Invariant 77: dL/d lp_w = -beta sigmoid(Omega - beta h), no term from Omega; larger than DPO's."""
    x = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2])
    _, slope_BG = value_and_gradient(summed(gamma=0.001), x)
    omega = 0.001 * (math.exp(4.5) + math.exp(4.2))
    push = BETA / (1 + math.exp(BETA * 1.3 - omega))
    assert slope_BG[0].tolist() == pytest.approx([-push, push], abs=1e-9)
    assert push > value_and_gradient(DPO(beta=BETA), x)[1].max()


def test_margin_is_detached_and_raises_the_loss() -> None:
    """Invariant 77: even where the margin is computed from the policy, as in the exact form."""
    h = torch.full((4,), 0.7, dtype=torch.float64)
    margin = torch.tensor([0.0, 0.5, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    losses = cpo_loss(h, margin, beta=BETA)
    assert not losses.requires_grad
    assert losses.diff().min() > 0


def test_at_the_reference() -> None:
    """Invariant 78: L = softplus(Omega), Omega = .02 (1/.1 + 1/.9) = .2222, whoever wins."""
    omega = 0.02 * (10 + 1 / 0.9)
    for preference in (1.0, 0.0):
        loss_B = summed().loss(pair_inputs(logps=REF, ref=REF, preference=preference)).loss_B
        assert loss_B.item() == pytest.approx(math.log1p(math.exp(omega)), abs=1e-12)


def test_swapping_the_label() -> None:
    """Invariant 78: h changes sign, Omega does not."""
    omega = 0.02 * (10 + 1 / 0.9)
    h = 1.0 - DELTA_REF
    for preference, sign in ((1.0, 1.0), (0.0, -1.0)):
        loss_B = summed().loss(pair_inputs(logps=[-1.0, -2.0], ref=REF, preference=preference)).loss_B
        assert loss_B.item() == pytest.approx(math.log1p(math.exp(omega - sign * BETA * h)), abs=1e-12)


def test_relabelling() -> None:
    """Invariant 16, with the margin that depends on the order of the pair."""
    card = summed(margin="hard", m0=0.3)
    loss_B = card.loss(pair_inputs(logps=[-1.0, -2.0], ref=REF, preference=0.7)).loss_B
    swapped_B = card.loss(pair_inputs(logps=[-2.0, -1.0], ref=REF[::-1], preference=0.3)).loss_B
    torch.testing.assert_close(loss_B, swapped_B, rtol=0, atol=1e-12)


def test_a_shift_of_the_policy_changes_nothing() -> None:
    """Invariant 17 for the policy's log-probs; the reference's enter the margin and opt out."""
    loss = summed().loss(pair_inputs(logps=[-1.0, -2.0], ref=REF)).loss_B.item()
    assert summed().loss(pair_inputs(logps=[4.0, 3.0], ref=REF)).loss_B.item() == pytest.approx(loss, abs=1e-12)
    assert summed().loss(pair_inputs(logps=[-1.0, -2.0], ref=[v - 1 for v in REF])).loss_B.item() > loss + 1e-3


def test_repeating_tokens() -> None:
    """Invariant 19: twice the tokens with the same log-ratios double h and leave hbar as it is."""
    once = pair_inputs(logps=[-4.0, -5.0], ref=[-4.5, -4.2], lengths=[2, 3])
    twice = pair_inputs(logps=[-8.0, -10.0], ref=[-9.0, -8.4], lengths=[4, 6])
    card = CPO(beta=2.5, gamma=0.25)
    torch.testing.assert_close(card.loss(twice).loss_B, card.loss(once).loss_B, rtol=0, atol=1e-12)
    doubled_B = summed(beta=2 * BETA, gamma=0.0).loss(once).loss_B
    torch.testing.assert_close(summed(gamma=0.0).loss(twice).loss_B, doubled_B, rtol=0, atol=1e-12)


def test_two_responses_population_minimiser() -> None:
    """Invariant 79: delta* of RLHF -1.5972; with Omega .2222, -1.1528 in fixed orientation, -1.5233 as implemented.

    Fixed orientation: delta_ref + (dr + Omega)/beta. Margin at the label: beta h = log u with
    u = ((E - 1) + sqrt((E - 1)^2 + 4 E e^{-2 Omega})) / (2 e^{-Omega}), E = e^dr.
    """
    omega = 0.02 * (10 + 1 / 0.9)
    assert stationary_delta(0.0, follows_label=True) == pytest.approx(DELTA_REF + DR / BETA, abs=1e-9)
    assert stationary_delta(0.0, follows_label=True) == pytest.approx(-1.5972, abs=1e-4)
    assert stationary_delta(omega, follows_label=False) == pytest.approx(DELTA_REF + (DR + omega) / BETA, abs=1e-9)
    assert stationary_delta(omega, follows_label=False) == pytest.approx(-1.1528, abs=1e-4)
    e, shrunk = math.exp(DR), math.exp(-omega)
    u = ((e - 1) + math.sqrt((e - 1) ** 2 + 4 * e * shrunk**2)) / (2 * shrunk)
    assert math.log(u) == pytest.approx(0.3369, abs=1e-4)
    assert stationary_delta(omega, follows_label=True) == pytest.approx(DELTA_REF + math.log(u) / BETA, abs=1e-9)
    assert stationary_delta(omega, follows_label=True) == pytest.approx(-1.5233, abs=1e-4)
    x = pair_inputs(logps=[DELTA_REF + math.log(u) / BETA, 0.0], ref=REF, preference=1 / (1 + math.exp(-DR)))
    assert value_and_gradient(summed(), x)[1].abs().max() < 1e-12


def exact_margin(pi_w: float, gamma: float) -> float:
    """The margin with the policy's own probabilities, of which the reference form is an approximation."""
    logs = torch.tensor([pi_w, 1 - pi_w], dtype=torch.float64).log()
    return float(reference_margin(logs[0], logs[1], gamma=gamma, margin_clip=1e9))


def objective(pi_w: float, gamma: float) -> float:
    """Eq. 10 for two responses with rewards dr and 0."""
    kl = pi_w * math.log(pi_w / 0.1) + (1 - pi_w) * math.log((1 - pi_w) / 0.9)
    return pi_w * DR - BETA * kl + gamma * (math.log(pi_w) - math.log(1 - pi_w))


def test_the_exact_margin_is_the_stationarity_condition_of_the_penalty() -> None:
    """Invariant 80: at the local maximum of Eq. 10, pi_w = .20551, beta (delta - delta_ref) = dr + Omega = .4225."""
    found = minimize_scalar(lambda pi_w: -objective(pi_w, 0.02), bounds=(0.05, 0.5), method="bounded")
    delta = math.log(found.x / (1 - found.x))
    assert found.x == pytest.approx(0.20551, abs=1e-4)
    assert delta == pytest.approx(-1.3522, abs=1e-3)
    assert BETA * (delta - DELTA_REF) == pytest.approx(DR + exact_margin(found.x, 0.02), abs=1e-4)
    assert BETA * (delta - DELTA_REF) == pytest.approx(0.4225, abs=1e-4)


def test_the_multiplier_that_ranks_the_pair_correctly() -> None:
    """Invariant 81: gamma* = (-(beta delta_ref + dr)) / (1/p_w + 1/p_l) = .19965 at p = 1/2, .071875 at p = ref."""
    needed = -(BETA * DELTA_REF + DR)
    assert needed / exact_margin(0.5, 1.0) == pytest.approx(0.19965, abs=1e-5)
    log_margin = log_reference_margin(torch.tensor(REF[0]), torch.tensor(REF[1]), gamma=0.071875)
    assert stationary_delta(float(log_margin.exp()), follows_label=False) == pytest.approx(0.0, abs=1e-4)


def test_above_a_ceiling_the_penalty_has_no_maximum() -> None:
    """Invariant 81: stationarity needs gamma = (beta (delta - delta_ref) - dr) / (1/pi_w + 1/pi_l) <= .25669."""

    def multiplier(pi_w: float) -> float:
        return (BETA * (math.log(pi_w / (1 - pi_w)) - DELTA_REF) - DR) / exact_margin(pi_w, 1.0)

    found = minimize_scalar(lambda pi_w: -multiplier(pi_w), bounds=(0.3, 0.95), method="bounded")
    assert multiplier(found.x) == pytest.approx(0.25669, abs=1e-5)
    assert math.log(found.x / (1 - found.x)) == pytest.approx(0.863, abs=1e-3)


@pytest.mark.parametrize("beta", [0.1, 1.0, 50.0])
def test_soft_margin_view(beta: float) -> None:
    """Invariants 82, 83: softplus(beta a)/beta - max(0, a) in [0, log 2/beta], a = delta_ref + Omega/beta - delta."""
    h = torch.linspace(-5, 5, 101, dtype=torch.float64)
    margin = torch.tensor(2.0 * beta, dtype=torch.float64)
    excess = cpo_loss(h, margin, beta=beta) / beta - (2.0 - h).clamp(min=0)
    assert excess.min() >= -1e-12
    assert excess.max() <= math.log(2) / beta + 1e-12
    assert excess[h.sub(2.0).abs().argmin()].item() == pytest.approx(math.log(2) / beta, abs=1e-12)
    assert softplus(torch.zeros(())).item() == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize(("beta", "dpo"), [(0.1, 0.598), (1.0, 0.127)])
def test_witness_of_the_undesirable_set(beta: float, dpo: float) -> None:
    """Invariant 84: delta_ref -4, delta -2: DPO's loss is below log 2 and the rejected response still leads."""
    x = pair_inputs(logps=[-5.0, -3.0], ref=[-6.0, -2.0])
    metrics = summed(beta=beta).loss(x).metrics
    assert metrics["dpo_loss"].item() == pytest.approx(dpo, abs=1e-3)
    assert metrics["dpo_loss"].item() == dpo_loss(torch.tensor(2.0, dtype=torch.float64), beta=beta).item()
    assert metrics["dpo_loss"].item() < math.log(2) < summed(beta=beta, margin="hard").loss(x).loss_B.item()
    assert metrics["u_rate"].item() == 1
    assert (metrics["acc_abs"].item(), metrics["acc_rel"].item()) == (0, 1)


def test_diagnostics() -> None:
    """One labelled pair per prompt: escaped; right from the start; forgotten; a soft label counts both orders."""
    x = LossInputs(
        logps_BG=torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-3.0, -2.0], [-1.0, -2.0]]),
        lengths_BG=torch.tensor([[1, 4], [1, 1], [1, 1], [1, 1]]),
        valid_BG=torch.ones(4, 2, dtype=torch.bool),
        feedback=Feedback(
            prefs_KBGG=torch.tensor([[[0.5, p], [1 - p, 0.5]] for p in (1.0, 1.0, 1.0, 0.75)])[None],
        ),
        anchors={"ref": torch.tensor([[-2.0, -1.0], [-1.0, -1.5], [-1.0, -2.0], [-1.0, -1.5]])},
    )
    metrics = {name: value_B.tolist() for name, value_B in summed().loss(x).metrics.items()}
    assert metrics["acc_abs"] == [1, 1, 0, 0.75]
    assert metrics["acc_rel"] == [1, 1, 0, 0.75]
    assert metrics["u_rate"] == [0, 0, 0, 0]
    assert metrics["ref_misranked"] == [1, 0, 0, 0.25]
    assert metrics["escaped"] == [1, 0, 0, 0]
    assert metrics["delta_summed"] == [1, 1, -1, 0.5]
    assert metrics["delta_normalized"] == [-0.5, 1, -1, 0.5]


@pytest.mark.parametrize("length_normalize", [True, False])
@pytest.mark.parametrize("margin", ["reference", "hard"])
def test_very_unlikely_sequences(length_normalize: bool, margin: str) -> None:
    """Invariant 85: in float32, e^500 is clipped before it is formed, and the clipping is logged."""
    x = LossInputs(
        logps_BG=torch.tensor([[-480.0, -510.0]], requires_grad=True),
        lengths_BG=torch.tensor([[400, 500]]),
        valid_BG=torch.ones(1, 2, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=torch.tensor([[[[0.5, 1.0], [0.0, 0.5]]]])),
        anchors={"ref": torch.tensor([[-500.0, -500.0]])},
    )
    output = CPO(beta=2.5, gamma=0.25, margin=margin, length_normalize=length_normalize).loss(x)
    (slope_BG,) = grad(output.loss_B.sum(), x.logps_BG)
    assert output.loss_B.isfinite().all()
    assert slope_BG.isfinite().all()
    assert all(value_B.isfinite().all() for value_B in output.metrics.values())
    assert output.metrics["margin_clipped"].item() == (not length_normalize)
    assert output.metrics["mean_omega"].item() <= 10.0 + 1e-5


@pytest.mark.parametrize("options", [{"gamma": -0.1}, {"m0": -1.0}, {"margin_clip": 0.0}])
def test_ranges(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"expected {next(iter(options))}"):
        summed(**options)
