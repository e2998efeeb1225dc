"""MaxMin: its base on combined feedback, its modes, and the combinations that it refuses."""

import pytest
import torch

from alignment.errors import UserError
from alignment.games import PanelGame, conflicting_panel
from alignment.methods import build_method
from alignment.methods.maxmin import MaxMin
from alignment.methods.spo import SPO
from alignment.tabular import run_tabular
from tests.methods.regression import random_preferences

OPTIONS = {"base": {"name": "spo", "kappa_ref": 0.1}, "mode": "mirror", "step": 0.3}

BASE = {"name": "spo", "kappa_ref": 0.1}
REF = torch.tensor([[0.7, 0.3]], dtype=torch.float64)


def two_arms(scores: list[list[float]], tau: float) -> PanelGame:
    """A panel of rewards over two arms, one context."""
    return PanelGame(scores_KXA=torch.tensor(scores, dtype=torch.float64)[:, None], ref_XA=REF, tau=tau)


@pytest.mark.parametrize("mode", ["group_argmin", "sample_min", "mirror"])
def test_one_group_is_the_base_method(mode: str) -> None:
    """Invariant 100: with one oracle, or twice the same, every mode walks exactly as the base against the reference."""
    prefs_XAA = random_preferences(2, 0)[None]
    method = build_method({"name": "maxmin", "base": BASE, "mode": mode})
    policies = []
    for num_oracles in (1, 2):
        panel = PanelGame(prefs_KXAA=prefs_XAA[None].repeat(num_oracles, 1, 1, 1), ref_XA=REF, tau=0.1)
        policies.append(run_tabular(method, panel, lr=0.3, iterations=50, optimizer="natural").policy_XA)
    # The base against ref: reward P(y > ref) less the KL has the closed form ref exp(u / tau).
    utilities_XA = torch.einsum("xab,xb->xa", prefs_XAA, REF)
    solved = run_tabular(method, panel, lr=0.3, iterations=1500, optimizer="natural").policy_XA
    torch.testing.assert_close(policies[0], policies[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(solved, (REF.log() + utilities_XA / 0.1).softmax(-1), rtol=0, atol=1e-8)


def test_two_arms_in_conflict() -> None:
    """Invariant 103: rewards (1, 0) and (0, 1), no KL: group_argmin and mirror mix half and half; sample_min has no
    gradient; the plain mean at 10:1 takes the majority's arm."""
    panel = two_arms([[1.0, 0.0], [0.0, 1.0]], tau=0.0)

    def average(mode: str, panel: PanelGame = panel) -> torch.Tensor:
        method = MaxMin(base={"name": "spo"}, mode=mode, step=0.05)  # type: ignore[arg-type]
        return run_tabular(method, panel, lr=0.05, iterations=3000, optimizer="natural").average_XA

    for mode in ("group_argmin", "mirror"):
        torch.testing.assert_close(average(mode), torch.full_like(REF, 0.5), rtol=0, atol=0.01)
    torch.testing.assert_close(average("sample_min"), REF, rtol=0, atol=1e-12)
    mean = two_arms([[10 / 11, 1 / 11]], tau=0.0)
    assert float(average("mirror", mean)[0, 0]) > 0.99


def test_a_constant_on_one_reward_changes_the_answer() -> None:
    """Invariant 104: raw rewards must be calibrated before a minimum; win probabilities are on one scale already."""
    raw = two_arms([[1.0, 0.0], [0.0, 1.0]], tau=0.1)
    shifted = two_arms([[1.4, 0.4], [0.0, 1.0]], tau=0.1)
    assert float((raw.maxmin(1e-9).policy_XA - shifted.maxmin(1e-9).policy_XA).abs().max()) > 0.05


def test_calibrated_rewards_forget_the_constant() -> None:
    """Invariant 104: z-scores on samples of the reference take a constant away, so the answer stays (1e-10).

    Written out here, on exact expectations; `tests/text/test_groups.py` has that of the training loop.
    """

    def calibrated(scores: list[list[float]]) -> PanelGame:
        scores_KA = torch.tensor(scores, dtype=torch.float64)
        centred_KA = scores_KA - (scores_KA @ REF[0])[:, None]
        deviation_K = (centred_KA.square() @ REF[0]).sqrt()
        return two_arms((centred_KA / deviation_K[:, None]).tolist(), tau=0.1)

    raw, shifted = calibrated([[1.0, 0.0], [0.0, 1.0]]), calibrated([[1.4, 0.4], [0.0, 1.0]])
    torch.testing.assert_close(raw.maxmin(1e-9).policy_XA, shifted.maxmin(1e-9).policy_XA, rtol=0, atol=1e-10)


def test_the_worst_group_is_served() -> None:
    """The maxmin policy's worst group does better than under the majority of the same oracles."""
    panel = conflicting_panel(num_actions=3, num_majority=3, num_minority=1, tau=0.05)
    majority_XA = panel.majority().best_response(panel.ref_XA)
    assert float(panel.group_values(majority_XA).min()) < float(panel.group_values(panel.maxmin(1e-9).policy_XA).min())


def test_it_refuses_a_base_without_wins() -> None:
    """A base that reads pairs from a file has no group utility to take a minimum of."""
    with pytest.raises(UserError, match="'dpo', which reads pairs offline"):
        MaxMin(base={"name": "dpo", "beta": 0.1})
    with pytest.raises(UserError, match="expected a game with one oracle"):
        run_tabular(SPO(), two_arms([[1.0, 0.0]], tau=0.0), lr=0.1, iterations=1)


def test_its_opponent_is_the_reference() -> None:
    """Group means of symmetric self-play are 1/2 for every oracle, so the base's own opponent is replaced."""
    needs = MaxMin(base=BASE).needs
    assert needs.opponent == "ref" and needs.num_oracles == "many" and needs.welfare is not None
