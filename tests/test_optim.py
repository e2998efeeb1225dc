"""Extragradient: the textbook recursion, and coming back bit for bit."""

import pytest
import torch

from alignment.optim import ExtraGradient


def test_textbook_recursion_on_a_bilinear_saddle() -> None:
    """Invariant 43: min-max xy, 200 steps of size 0.3, equals z - lr F(z - lr F(z)) with F = (y, -x); it contracts."""
    x, y = (torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64)) for _ in range(2))
    optimizer = ExtraGradient(torch.optim.SGD([x, y], lr=0.3))
    z = torch.tensor([1.0, 1.0], dtype=torch.float64)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    for _ in range(200):
        for optimizer.stage in (0, 1):
            x.grad, y.grad = y.detach().clone(), -x.detach().clone()
            optimizer.step()
        z = z - 0.3 * turn @ (z - 0.3 * turn @ z)
    torch.testing.assert_close(torch.stack([x, y]).detach(), z, rtol=0, atol=1e-12)
    assert float(z.norm()) < 1e-1
    assert optimizer.num_stages == 2


def test_rewind_restores_weights_and_moments_bit_for_bit() -> None:
    """Invariant 41, with Adam, before its first step and after some."""
    weight = torch.nn.Parameter(torch.randn(5))
    optimizer = ExtraGradient(torch.optim.AdamW([weight], lr=0.1))
    for _ in range(3):
        start = weight.detach().clone()
        state = {key: torch.as_tensor(value).clone() for key, value in optimizer.state.get(weight, {}).items()}
        optimizer.stage = 0
        weight.grad = torch.randn(5)
        optimizer.step()
        assert not torch.equal(weight, start)
        optimizer.rewind()
        assert torch.equal(weight, start)
        assert {key: value.tolist() for key, value in state.items()} == {
            key: torch.as_tensor(value).tolist() for key, value in optimizer.state.get(weight, {}).items()
        }
        optimizer.stage = 1
        weight.grad = torch.randn(5)
        optimizer.step()


def test_without_a_stage_it_is_the_inner_optimizer() -> None:
    """Engines step once at initialisation: stage None passes through."""
    weight, twin = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer, plain = ExtraGradient(torch.optim.Adam([weight], lr=0.1)), torch.optim.Adam([twin], lr=0.1)
    weight.grad, twin.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    plain.step()
    assert torch.equal(weight, twin)


def test_the_state_counts_real_steps_only() -> None:
    """After two iterations of two stages Adam has taken two steps; the checkpoint is the inner optimizer's."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = ExtraGradient(torch.optim.Adam([weight], lr=0.1))
    for _ in range(2):
        for optimizer.stage in (0, 1):
            weight.grad = torch.ones(3)
            optimizer.step()
    assert int(optimizer.state[weight]["step"]) == 2
    other = ExtraGradient(torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=0.5))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.1


def test_a_look_ahead_of_length_zero_is_one_plain_step() -> None:
    """Invariant 42: with lr 0 in the half step the opponent is the start, so EGPO takes OMD's step."""
    weight, twin = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimizer, plain = ExtraGradient(torch.optim.SGD([weight], lr=0.0)), torch.optim.SGD([twin], lr=0.1)
    for optimizer.stage, lr in ((0, 0.0), (1, 0.1)):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = weight.detach() ** 3
        optimizer.step()
    twin.grad = twin.detach() ** 3
    plain.step()
    assert torch.equal(weight, twin)


def test_a_rewound_gradient_makes_it_a_plain_step() -> None:
    """Invariant 41, the other way: EGPO's second stage takes its gradient at the start, so a loss that ignores the
    opponent is minimised exactly as by the inner optimizer alone, Adam's moments and step count included.
    """
    weight, twin = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5])) for _ in range(2))
    optimizer, plain = ExtraGradient(torch.optim.Adam([weight], lr=0.1)), torch.optim.Adam([twin], lr=0.1)
    for _ in range(4):
        for optimizer.stage in (0, 1):
            if optimizer.stage == 1:
                optimizer.rewind()
            weight.grad = weight.detach() ** 3
            optimizer.step()
        twin.grad = twin.detach() ** 3
        plain.step()
    assert torch.equal(weight, twin)
    for key, value in plain.state[twin].items():
        assert torch.equal(torch.as_tensor(optimizer.state[weight][key]), torch.as_tensor(value)), key


def test_groups_may_be_stepped_one_at_a_time() -> None:
    """As DeepSpeed does: each put in place of all, while gradients of the others may be there already."""
    ends = []
    for one_at_a_time in (False, True):
        weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
        optimizer = ExtraGradient(torch.optim.Adam([{"params": [weight]} for weight in weights], lr=0.1))
        every_group = optimizer.param_groups
        for _ in range(2):
            for optimizer.stage in (0, 1):
                for weight in weights:
                    weight.grad = 2.0 * weight.detach() + optimizer.stage
                for groups in [[group] for group in every_group] if one_at_a_time else [every_group]:
                    optimizer.param_groups = groups
                    optimizer.step()
                optimizer.param_groups = every_group
        assert optimizer.inner.param_groups is every_group
        assert [int(state["step"]) for state in optimizer.state.values()] == [2, 2]
        ends.append(torch.cat([weight.detach() for weight in weights]))
    assert torch.equal(*ends)


def test_a_second_rewind_is_idle() -> None:
    """``step`` in stage 1 rewinds by itself; after ``rewind`` it finds nothing more to undo."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = ExtraGradient(torch.optim.SGD([weight], lr=0.5))
    optimizer.stage = 0
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    optimizer.rewind()
    with torch.no_grad():
        weight.fill_(3.0)
    optimizer.rewind()
    assert weight.item() == 3.0


def test_momentum_counts_real_steps_only() -> None:
    """lr 1, momentum 1/2, gradients 1 (half) and 2 (full), twice: buffer 2 then 1 + 2 = 3, so 0 - 2 - 3 = -5."""
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = ExtraGradient(torch.optim.SGD([weight], lr=1.0, momentum=0.5))
    for _ in range(2):
        for optimizer.stage in (0, 1):
            weight.grad = torch.tensor([1.0 + optimizer.stage])
            optimizer.step()
    assert weight.item() == -5.0


def test_parameters_without_a_gradient_stay() -> None:
    """A frozen layer is neither moved nor remembered; groups keep their own step sizes."""
    frozen, slow, fast = (torch.nn.Parameter(torch.tensor([1.0])) for _ in range(3))
    inner = torch.optim.SGD([{"params": [frozen, slow], "lr": 0.1}, {"params": [fast], "lr": 0.2}])
    optimizer = ExtraGradient(inner)
    for optimizer.stage in (0, 1):
        for weight in (slow, fast):
            weight.grad = weight.detach().clone()
        optimizer.step()
    assert frozen.item() == 1.0
    # z - lr (z - lr z) = 1 - lr (1 - lr)
    assert slow.item() == pytest.approx(1 - 0.1 * 0.9, abs=1e-7) and fast.item() == pytest.approx(
        1 - 0.2 * 0.8, abs=1e-7
    )


def test_schedulers_and_checkpoints_see_one_optimizer() -> None:
    """A scheduler moves the inner learning rate; between the stages there is no checkpoint; closures are refused."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = ExtraGradient(torch.optim.Adam([weight], lr=0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    weight.grad = torch.tensor([1.0])
    optimizer.stage = 0
    optimizer.step()
    with pytest.raises(AssertionError, match="after the last stage"):
        optimizer.state_dict()
    optimizer.stage = 1
    optimizer.step()
    scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.05
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.05
    with pytest.raises(AssertionError, match="no closure"):
        optimizer.step(lambda: 0.0)
