"""Iterations of several steps on one rollout, averages of weights, and slow targets of adapters."""

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState

from alignment import anchors as anchors_module
from alignment.anchors import AnchorSet
from alignment.arguments import AlignmentArguments
from alignment.errors import UserError
from alignment.generation.transformers import TransformersEngine
from alignment.iterations import RefreshEngine, WholeIterations, count_steps, per_iteration
from alignment.oracles import MatrixOracle
from alignment.trainer import PreferenceTrainer
from alignment.types import Ema, Needs
from alignment.weights import TrainableWeights, adapter_weights
from tests.text.symbols import SYMBOLS, question_rows, symbol_model, symbol_tokenizer
from tests.text.test_online import transitive_game

CLIPPED = {"name": "spo", "kappa_ref": 0.05, "clip": 0.2}


class CountedOracle(MatrixOracle):
    """Counts the questions."""

    calls = 0

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        self.calls += len(prompts)
        return super().prefer(prompts, left, right)


def trainer_of(folder: object, method: dict[str, Any], *, lora: bool = False, **changes: Any) -> PreferenceTrainer:
    model = symbol_model(logits_A=torch.zeros(3))
    model.requires_grad_(True)
    settings = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-2,
        "num_completions": 4,
        "max_new_tokens": 1,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return PreferenceTrainer(
        model=model,
        engine=changes.pop("policy_engine", None),
        args=AlignmentArguments(**settings | changes),
        train_dataset=question_rows(64),
        processing_class=symbol_tokenizer(),
        oracle=CountedOracle(transitive_game().prefs_XAA, responses=SYMBOLS),
        method=method,
        peft_config=peft.LoraConfig(r=2, target_modules=["lm_head"]) if lora else None,
    )


def weights(trainer: PreferenceTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_several_steps_share_a_rollout(tmp_path: object) -> None:
    """Three iterations of two steps: three rollouts are paid for; ratios are 1 at first and move at the second step."""
    seen: list[tuple[int, Tensor, Tensor]] = []

    class Watched(PreferenceTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Tensor:
            annotated = inputs["annotated"]
            # Not scored apart: the first step's own forward says it.
            assert ("behaviour" in annotated.anchors) == (self.step_in_iteration > 0)
            x, _ = self._forward(model, annotated)
            seen.append(
                (self.step_in_iteration, annotated.completions.input_ids_BGT, x.logps_BG - x.anchor("behaviour"))
            )
            return super().compute_loss(model, inputs, *rest, **options)

    trainer = trainer_of(tmp_path, CLIPPED, steps_per_rollout=2)
    trainer.__class__ = Watched
    trainer.train()
    assert trainer.state.global_step == 6
    # 8 prompts, 6 pairs of 4 answers.
    assert trainer.count_oracle_calls() == 3 * 8 * 6
    assert [step for step, _, _ in seen] == [0, 1] * 3
    for (_, first_ids, first_BG), (_, second_ids, second_BG) in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(first_ids, second_ids)
        torch.testing.assert_close(first_BG, torch.zeros_like(first_BG), rtol=0, atol=1e-5)
        assert float(second_BG.detach().abs().max()) > 1e-3
    assert not torch.equal(seen[0][1], seen[2][1])


def test_the_behaviours_log_probs_may_have_a_forward_of_their_own(tmp_path: object) -> None:
    """The same numbers, to rounding, and so the same training; the log says which of both it was."""
    ways = {"auto": "from its next forward", "fresh": "from a forward of their own (scoring.behaviour: fresh)"}
    ends = []
    for way, said in ways.items():
        trainer = trainer_of(tmp_path, CLIPPED, steps_per_rollout=2, scoring_behaviour=way)
        assert any(f"the policy that sampled: {said}" in note for note in trainer.notes)
        assert trainer.notes[2].startswith("log-probs of frozen policies: 1 forward a batch (ref)")
        trainer.train()
        ends.append(weights(trainer))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [{"name": "egpo", "tau": 0.1}, {"name": "spo"}], ids=["egpo", "spo unclipped"])
def test_a_second_step_needs_the_behaviours_log_probs(method: dict[str, Any], tmp_path: object) -> None:
    with pytest.raises(UserError, match="steps_per_rollout: expected 1, got 2"):
        trainer_of(tmp_path, method, steps_per_rollout=2)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_average_is_that_of_all_policies(decay: float, tmp_path: object) -> None:
    """By hand from the policies after every iteration: their plain mean, or mean at first and then exponential."""
    policies: list[Tensor] = []

    class Watched(PreferenceTrainer):
        def training_step(self, *arguments: Any, **options: Any) -> Tensor:
            if self.step_in_iteration == 0:
                policies.append(weights(self))
            return super().training_step(*arguments, **options)

    trainer = trainer_of(tmp_path, CLIPPED, steps_per_rollout=2, average_decay=decay)
    trainer.__class__ = Watched
    trainer.train()
    policies.append(weights(trainer))
    expected = policies[0]
    for number, policy in enumerate(policies[1:], start=2):
        expected = expected + max(1 - decay, 1 / number) * (policy - expected)
    if decay == 1.0:
        torch.testing.assert_close(expected, torch.stack(policies).mean(0))
    last = weights(trainer)
    assert trainer.average is not None
    with trainer.average.in_place(trainer.model):
        torch.testing.assert_close(weights(trainer), expected)
    assert torch.equal(weights(trainer), last) and not torch.equal(last, expected)


def test_an_average_survives_a_resume(tmp_path: object) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "average_decay": 0.9, "lr_scheduler_type": "constant"}
    whole = trainer_of(f"{tmp_path}/whole", CLIPPED, **settings)
    whole.train()
    trainer_of(f"{tmp_path}/cut", CLIPPED, **settings | {"max_steps": 2}).train()
    resumed = trainer_of(f"{tmp_path}/cut", CLIPPED, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert whole.average is not None and resumed.average is not None
    for name, value in whole.average.values.items():
        assert torch.equal(value, resumed.average.values[name])


def test_a_target_of_an_adapter_is_the_adapter_alone(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow target takes the adapter's place in the base model, and trains to what a whole second model does."""
    method = {"name": "nash_mp", "tau": 0.1, "eta": 0.5, "decay": 0.5}
    torch.manual_seed(0)
    light = trainer_of(tmp_path, method, lora=True)
    (target,) = [light.anchors._copies[name] for name in light.anchors._decays]
    assert isinstance(target, TrainableWeights)
    trained = sum(parameter.numel() for parameter in light.model.parameters() if parameter.requires_grad)
    assert sum(value.numel() for value in target.values.values()) == trained < weights(light).numel()
    copied = lambda model: copy.deepcopy(model).eval().requires_grad_(False)  # noqa: E731
    monkeypatch.setattr(anchors_module, "_frozen_copy", copied)
    torch.manual_seed(0)
    heavy = trainer_of(tmp_path, method, lora=True)
    assert isinstance(heavy.anchors._copies["target"], torch.nn.Module)
    start = weights(light)
    light.train()
    heavy.train()
    assert torch.equal(weights(light), weights(heavy)) and not torch.equal(weights(light), start)


def test_targets_of_an_adapter_follow_it_in_parameters(tmp_path: object) -> None:
    """The same random walk of an adapter moves a light target and a whole copy to the same log-probs."""
    model = peft.get_peft_model(
        symbol_model(logits_A=torch.zeros(3)), peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    )
    needs = Needs(feedback="wins", anchors=(Ema("target", decay=0.75),))
    light = AnchorSet(needs, model)
    start = TrainableWeights(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in start.values:
                parameter.add_(0.5)
    light.advance()
    own = TrainableWeights(model)
    with light.model("target") as module:
        for name, parameter in module.named_parameters():
            if name in start.values:
                torch.testing.assert_close(parameter.data, 0.75 * start.values[name] + 0.25 * own.values[name])
    for name, value in TrainableWeights(model).values.items():
        assert torch.equal(value, own.values[name])
    model.save_pretrained(f"{tmp_path}/adapter")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in start.values:
                parameter.zero_()
    saved = adapter_weights(model, f"{tmp_path}/adapter")
    for name, value in own.values.items():
        assert torch.equal(saved.values[name], value)
    assert all(not bool(value.any()) for value in TrainableWeights(model).values.values())


def test_an_engine_takes_exchanged_weights_anew(tmp_path: object) -> None:
    """A copy of the weights that an engine serves is stale while a target stands in their place, and afterwards."""
    trainer = trainer_of(tmp_path, {"name": "nash_mp", "tau": 0.1, "eta": 0.5}, lora=True)
    refreshed: list[bool] = []
    (target,) = [trainer.anchors._copies[name] for name in trainer.anchors._decays]
    assert isinstance(target, TrainableWeights)
    name, held = next(iter(target.values.items()))
    parameters = dict(trainer.model.named_parameters())

    class Watching:
        def refresh(self) -> None:
            refreshed.append(parameters[name].data_ptr() == held.data_ptr())

    trainer.engine = Watching()  # type: ignore[assignment]
    trainer.anchors._on_exchange = trainer.engine.refresh
    with trainer.anchors.model("target"):
        assert refreshed == [True]
    assert refreshed == [True, False]
    with trainer.anchors.model("policy"):
        pass
    assert len(refreshed) == 2


def test_counts_are_made_steps_and_fractions_become_whole_iterations() -> None:
    """Of three steps an iteration: every one is every third step; a fraction of a run is rounded up to iterations, and
    a schedule stands still inside of one."""
    args = AlignmentArguments(output_dir="unused", max_steps=7, logging_steps=1, eval_steps=0.4, save_steps=2)
    counted = count_steps(args, 3)
    assert (counted.max_steps, counted.logging_steps, counted.eval_steps, counted.save_steps) == (21, 3, 0.4, 6)
    assert (args.max_steps, args.logging_steps) == (7, 1)
    state = TrainerState(logging_steps=3, eval_steps=10, save_steps=None)
    WholeIterations(3).on_train_begin(args, state, TrainerControl())
    assert (state.logging_steps, state.eval_steps, state.save_steps) == (3, 12, None)
    assert [per_iteration(float, 3)(step) for step in range(7)] == [0.0] * 3 + [1.0] * 3 + [2.0]


def test_an_engine_is_told_of_every_change() -> None:
    """Loaded weights at the start, a step, and the best checkpoint, which the end may bring back."""

    class Told:
        times = 0

        def refresh(self) -> None:
            self.times += 1

    engine = Told()
    callback = RefreshEngine(engine)  # type: ignore[arg-type]
    for event in (callback.on_train_begin, callback.on_step_end, callback.on_step_end, callback.on_train_end):
        before = engine.times
        event(None, TrainerState(), TrainerControl())
        assert engine.times == before + 1


def test_a_delay_of_evaluations_counts_as_they_do(tmp_path: object) -> None:
    """In iterations where they come every so many of them, in epochs where they come after each."""
    for strategy, expected in (("steps", 6), ("epoch", 2)):
        args = AlignmentArguments(
            output_dir=str(tmp_path), eval_strategy=strategy, eval_steps=1, eval_delay=2, max_steps=4
        )
        counted = count_steps(args, 3)
        assert (counted.eval_delay, counted.max_steps) == (expected, 12)


def test_a_server_that_keeps_its_weights_is_no_engine_of_a_policy(tmp_path: object) -> None:
    class Elsewhere(TransformersEngine):
        takes_weights = False

    with pytest.raises(UserError, match=r"engine: expected one that samples from the policy's own weights, got Elsew"):
        trainer_of(tmp_path, CLIPPED, policy_engine=Elsewhere())
