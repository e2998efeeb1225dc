"""EGPO's two stages under all that a training loop adds: what is put back, what is copied, what is left alone."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from alignment.arguments import AlignmentArguments
from alignment.oracles import MatrixOracle
from alignment.trainer import PreferenceTrainer
from tests.text.symbols import SYMBOLS, cyclic_game, question_rows, symbol_model, symbol_tokenizer

Snapshot = dict[str, Tensor]


class Watched(PreferenceTrainer):
    """Remembers weights, inner state and the size of the backup at every loss, and after every step."""

    before: list[tuple[int, Snapshot]]
    ahead: list[tuple[int, Snapshot]]
    backup_bytes: list[int]
    backed_up: list[set[str]]

    def snapshot(self) -> Snapshot:
        """Every parameter, and every entry of the inner optimizer's state, counts of steps among them."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        found = {name: parameter.detach().clone() for parameter, name in names.items()}
        for parameter, state in self._extragradient().inner.state.items():
            found |= {f"{names[parameter]}:{key}": torch.as_tensor(value).clone() for key, value in state.items()}
        return found

    def compute_loss(self, *arguments: Any, **options: Any) -> Tensor:
        self.before.append((self.step_in_iteration, self.snapshot()))
        return super().compute_loss(*arguments, **options)

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        wrapper = self._extragradient()
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        if wrapper._start:
            self.ahead.append((self.step_in_iteration, self.snapshot()))
            self.backed_up.append({names[parameter] for parameter in wrapper._start})
            self.backup_bytes.append(
                sum(
                    tensor.nbytes
                    for value, state in wrapper._start.values()
                    for tensor in (value, *(item for item in state.values() if isinstance(item, Tensor)))
                )
            )
        return super().get_batch_samples(*arguments, **options)


def train(folder: object, *, lora: bool = False, frozen: str | None = None, **changes: Any) -> Watched:
    model = symbol_model(seed=3)
    if frozen is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in name)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "optim": "adamw_torch",
        "num_completions": 3,
        "max_new_tokens": 1,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    trainer = Watched(
        model=model,
        args=AlignmentArguments(**settings | changes),
        train_dataset=question_rows(12),
        processing_class=symbol_tokenizer(),
        oracle=MatrixOracle(cyclic_game(tau=0.1).prefs_XAA, responses=SYMBOLS),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        method={"name": "egpo", "tau": 0.1},
    )
    trainer.before, trainer.ahead, trainer.backup_bytes, trainer.backed_up = [], [], [], []
    trainer.train()
    return trainer


def same(left: Snapshot, right: Snapshot) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_grad_norm": 0.05},
        {"gradient_accumulation_steps": 3},
        {"optim": "adamw_torch_fused"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"lora": True},
        {"bf16": True, "gradient_accumulation_steps": 2, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_the_real_step_starts_from_the_backup(changes: dict[str, Any], tmp_path: object) -> None:
    """Invariant 41: weights, moments and step counts at every loss of stage 1 are those of stage 0, bit for bit.

    In between the look-ahead had moved them. Every micro-batch of a stage sees the same, and one iteration counts one
    step of the inner optimizer.
    """
    trainer = train(tmp_path, **changes)
    count = changes.get("gradient_accumulation_steps", 1)
    stages = [stage for stage, _ in trainer.before]
    assert stages == ([0] * count + [1] * count) * 3
    iterations = [trainer.before[n : n + 2 * count] for n in range(0, len(trainer.before), 2 * count)]
    for number, (iteration, (_, ahead)) in enumerate(zip(iterations, trainer.ahead, strict=True)):
        start = iteration[0][1]
        assert all(same(start, snapshot) for _, snapshot in iteration)
        assert not same(start, ahead)
        steps = {int(value) for key, value in start.items() if key.endswith(":step")}
        assert steps <= {number}
    assert not same(iterations[0][0][1], iterations[1][0][1])


@pytest.mark.parametrize("changes", [{}, {"lora": True}, {"frozen": "layers.0"}], ids=str)
def test_the_backup_is_one_copy_of_what_is_trained(changes: dict[str, Any], tmp_path: object) -> None:
    """Trainable weights, from the second iteration on with AdamW's two moments and count; of LoRA the adapter only.

    What is frozen is neither copied nor moved, and nothing is kept between iterations.
    """
    trainer = train(tmp_path, **changes)
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainer.backed_up == [set(trainable)] * 3
    weights = sum(parameter.nbytes for parameter in trainable.values())
    assert trainer.backup_bytes == [weights, *[3 * weights + 4 * len(trainable)] * 2]
    assert trainer._extragradient()._start == {}
    everything = sum(parameter.nbytes for parameter in trainer.model.parameters())
    assert weights < everything if changes else weights == everything
    if changes.get("lora"):
        assert all("lora_" in name for name in trainable)
    first, last = trainer.before[0][1], trainer.snapshot()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(first[name], last[name]) or name in trainable, name
        assert isinstance(parameter, nn.Parameter)
