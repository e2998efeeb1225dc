"""Loss and gradients against TRL's on the same rows, policy and reference apart."""

import copy
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.methods import build_method
from alignment.tiny import tiny_model
from alignment.types import Feedback, LossInputs
from tests.text.test_trainer import PAIRS, first_loss, make_trainer, model, tokenizer

__all__ = ["model", "tokenizer"]

BETA = 0.3
# TRL's name of the loss -> our method, and what TRL must be told besides beta.
LOSSES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "sigmoid": ({"name": "dpo", "beta": BETA}, {}),
    "hinge": ({"name": "hinge", "beta": BETA}, {}),
    "ipo": ({"name": "ipo", "tau": BETA}, {}),
    "robust": ({"name": "robust_dpo", "beta": BETA, "eps": 0.1}, {"label_smoothing": 0.1}),
    "exo_pair": ({"name": "exo_pair", "beta": BETA, "eps": 0.1}, {"label_smoothing": 0.1}),
    "nca_pair": ({"name": "nca_pair", "beta": BETA}, {}),
    "bco_pair": ({"name": "bco_pair", "beta": BETA}, {}),
    "apo_zero": ({"name": "apo_zero", "beta": BETA}, {}),
    "apo_down": ({"name": "apo_down", "beta": BETA}, {}),
    "aot": ({"name": "aot", "beta": BETA, "eps": 0.1}, {"label_smoothing": 0.1}),
    # TRL's divisor beta is 1 / eta.
    "sppo_hard": ({"name": "sppo_hard", "eta": 1.0 / BETA}, {}),
}


@pytest.fixture(scope="module")
def ref(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return tiny_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2, seed=1)


@pytest.fixture(scope="module")
def theirs(tokenizer: PreTrainedTokenizerFast, ref: LlamaForCausalLM, tmp_path_factory: Any) -> Any:
    """TRL's trainer on the pairs; each test sets the loss and copies its policy's weights into it."""
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for prompt, chosen, rejected in PAIRS
    ]
    return DPOTrainer(
        model=tiny_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2),
        ref_model=copy.deepcopy(ref),
        args=DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            beta=BETA,
            per_device_train_batch_size=8,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradients_agree_with_trl(
    loss_type: str,
    theirs: Any,
    model: LlamaForCausalLM,
    ref: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: object,
) -> None:
    method, told = LOSSES[loss_type]
    theirs.loss_types, theirs.label_smoothing = [loss_type], told.get("label_smoothing", 0.0)
    theirs.model.load_state_dict(model.state_dict())
    theirs.model.zero_grad()
    expected = theirs.compute_loss(theirs.model, next(iter(theirs.get_train_dataloader())))
    expected.backward()
    trainer = make_trainer(model, tokenizer, tmp_path, method, ref_model=copy.deepcopy(ref))
    found = first_loss(trainer)
    found.backward()
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    # Relative to the size of the gradient: both sum the same float32 terms in another order.
    size = max(float(parameter.grad.abs().max()) for parameter in theirs.model.parameters())
    for (name, mine), (_, other) in zip(model.named_parameters(), theirs.model.named_parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, other.grad, rtol=1e-5, atol=1e-5 * max(size, 1.0), msg=lambda text, n=name: f"{n}: {text}"
        )


def test_odds_ratio_agrees_with_trl() -> None:
    """ORPO's odds term and its gradient. TRL adds the likelihood of prompt and reply, we that of the reply alone."""
    from trl.experimental.orpo import ORPOTrainer

    logps_BG = torch.tensor([[-3.0, -9.0], [-8.0, -2.5], [-0.4, -30.0]], requires_grad=True)
    lengths_BG = torch.tensor([[3, 5], [4, 2], [1, 6]])
    x = LossInputs(
        logps_BG=logps_BG,
        lengths_BG=lengths_BG,
        valid_BG=torch.ones(3, 2, dtype=torch.bool),
        feedback=Feedback(prefs_KBGG=torch.tensor([[0.5, 1.0], [0.0, 0.5]]).expand(1, 3, 2, 2)),
    )

    def loss(weight: float) -> torch.Tensor:
        return build_method({"name": "orpo", "weight": weight}).loss(x).loss_B

    found_B = loss(0.2) - loss(0.0)
    means_BG = logps_BG / lengths_BG
    stand_in = SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu"))
    expected_B = -ORPOTrainer.odds_ratio_loss(stand_in, means_BG[:, 0], means_BG[:, 1])[0]
    torch.testing.assert_close(found_B, expected_B, rtol=1e-5, atol=1e-6)
    mine, other = (torch.autograd.grad(value.sum(), logps_BG, retain_graph=True)[0] for value in (found_B, expected_B))
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
