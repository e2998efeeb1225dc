"""Methods whose first round comes from a data set, and unpaired responses, on the tiny model."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.anchors import AnchorSet
from alignment.arguments import AlignmentArguments
from alignment.data import Batch, Comparison, Row, Turn, collate, encode_rows, unpair_rows, with_mismatched
from alignment.logps import score
from alignment.methods import build_method
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.trainer import PreferenceTrainer

WORDS = ("red", "green", "blue", "a longer answer", "black and white", "no")


def rows() -> tuple[Row, ...]:
    return tuple(
        Row(
            prompt=(Turn("user", f"Question {i}: which one?"),),
            responses=(WORDS[i], WORDS[(i + 1) % 6]),
            comparisons=(Comparison(i % 2, 1 - i % 2),),
            source=f"pairs:{i + 1}",
        )
        for i in range(6)
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer([*WORDS, *(row.prompt[0].content for row in rows())], vocab_size=300)


@pytest.fixture(scope="module")
def batch(tokenizer: PreTrainedTokenizerFast) -> Batch:
    encoded = encode_rows(rows(), tokenizer, max_prompt_length=64, max_completion_length=16).rows
    return collate(encoded, pad_token_id=0)


def build(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> LlamaForCausalLM:
    return tiny_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2, seed=seed)


def make(
    tokenizer: PreTrainedTokenizerFast, folder: object, method: dict[str, Any], **changes: Any
) -> PreferenceTrainer:
    objects = {name: changes.pop(name, None) for name in ("model", "ref_model", "oracle", "peft_config", "rows")}
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 6,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "max_new_tokens": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PreferenceTrainer(
        model=objects["model"] or build(tokenizer),
        ref_model=objects["ref_model"],
        args=AlignmentArguments(**settings | changes),
        train_dataset=objects["rows"] or rows(),
        eval_dataset=objects["rows"] or rows(),
        processing_class=tokenizer,
        oracle=objects["oracle"],
        peft_config=objects["peft_config"],
        method=method,
    )


def losses(trainer: PreferenceTrainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # Before training every log-ratio is 0: what is left is the squared target, (1 / (2 eta))^2 or (eta / 2)^2.
        ({"name": "inpo", "tau": 0.05, "eta": 0.1}, 25.0),
        ({"name": "sppo", "eta": 4.0}, 4.0),
    ],
)
def test_the_first_loss_is_the_squared_target(
    method: dict[str, Any], expected: float, tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    trainer = make(tokenizer, tmp_path, method)
    assert not trainer.is_online
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [0.02, 0.1])
def test_a_round_from_the_reference_is_offline_ipo(
    tau: float, tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    """Where prev = ref, INPO is IPO of temperature eta for every tau (2407.00617, limits), step by step."""
    rounds = losses(make(tokenizer, tmp_path, {"name": "inpo", "tau": tau, "eta": 0.1}))
    offline = losses(make(tokenizer, tmp_path, {"name": "ipo", "tau": 0.1, "length_normalize": False}))
    assert rounds == pytest.approx(offline, rel=1e-5)


def test_the_start_is_scored_once(tokenizer: PreTrainedTokenizerFast, batch: Batch) -> None:
    """Reference and previous policy are one module, so one forward; another reference is a second one."""
    needs = build_method({"name": "inpo", "tau": 0.02, "eta": 0.1}).needs

    def forwards(anchors: AnchorSet) -> int:
        calls: list[int] = []
        modules = []
        for name in anchors.names:
            with anchors.model(name) as module:
                modules.append(module)
                # Looks the module over, once.
                score(module, batch.completions)
        hooks = [module.register_forward_hook(lambda *_: calls.append(1)) for module in set(modules)]
        scores = anchors.score(batch.completions)
        for hook in hooks:
            hook.remove()
        assert scores.keys() == {"ref", "prev"}
        return len(calls)

    assert forwards(AnchorSet(needs, build(tokenizer))) == 1
    assert forwards(AnchorSet(needs, build(tokenizer), ref_model=build(tokenizer, seed=1))) == 2


def test_a_trained_adapter_is_not_its_base(tokenizer: PreTrainedTokenizerFast, batch: Batch) -> None:
    """prev of a fresh adapter is the base model without a copy; of a trained one, a copy that keeps the adapter."""
    from peft import LoraConfig, get_peft_model

    needs = build_method({"name": "sppo", "eta": 1.0}).needs
    model = get_peft_model(build(tokenizer), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    fresh = AnchorSet(needs, model)
    start_BG = score(model.eval(), batch.completions).logps_BG
    torch.testing.assert_close(fresh.score(batch.completions)["prev"].logps_BG, start_BG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    trained_BG = score(model, batch.completions).logps_BG
    assert (trained_BG - start_BG).abs().max() > 1e-2
    torch.testing.assert_close(AnchorSet(needs, model).score(batch.completions)["prev"].logps_BG, trained_BG)
    torch.testing.assert_close(fresh.score(batch.completions)["prev"].logps_BG, start_BG)


def test_unpaired_responses_against_the_formula(tokenizer: PreTrainedTokenizerFast, tmp_path: object) -> None:
    """KTO's loss on the text path equals the formula of 2402.01306 on log-probs taken one sequence at a time."""
    ref = build(tokenizer, seed=1)
    method = {"name": "kto", "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.3}
    trainer = make(tokenizer, tmp_path, method, ref_model=ref, per_device_eval_batch_size=12, max_steps=6)
    found = trainer.evaluate()["eval_loss"]
    encoded = with_mismatched(
        encode_rows(unpair_rows(rows()), tokenizer, max_prompt_length=64, max_completion_length=16).rows
    )

    def logratio(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[*prompt, *completion]])
        sums = []
        for model in (trainer.model.eval(), ref.eval()):
            with torch.no_grad():
                logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            sums.append(logps[len(prompt) - 1 :].sum())
        return sums[0] - sums[1]

    z0 = torch.stack([logratio(item.prompt_ids, item.mismatched_ids) for item in encoded]).mean().clamp(min=0)
    terms = []
    for item in encoded:
        gain = 0.1 * (logratio(item.prompt_ids, item.completion_ids[0]) - z0)
        terms.append(1 - gain.sigmoid() if item.row.scores == (1.0,) else 1.3 * (1 - (-gain).sigmoid()))
    assert len(terms) == 12
    assert found == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < found


def test_kl_is_zero_at_the_start_and_positive_later(tokenizer: PreTrainedTokenizerFast, tmp_path: object) -> None:
    trainer = make(tokenizer, tmp_path, {"name": "dpo", "beta": 0.1}, learning_rate=0.5)
    assert trainer.evaluate()["eval_kl_to_ref"] == pytest.approx(0.0, abs=1e-6)
    trainer.train()
    assert trainer.evaluate()["eval_kl_to_ref"] > 1e-3


def test_bf16_trains(tokenizer: PreTrainedTokenizerFast, tmp_path: object) -> None:
    """Mixed precision moves the loss by no more than its rounding."""
    full = losses(make(tokenizer, tmp_path, {"name": "dpo", "beta": 0.1}))
    mixed = losses(make(tokenizer, tmp_path, {"name": "dpo", "beta": 0.1}, bf16=True))
    assert mixed == pytest.approx(full, abs=0.05) and mixed != full


def test_the_best_checkpoint_is_kept_and_training_stops_early(
    tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    """The KL to the reference only grows, so the first evaluation stays the best one."""
    from transformers import EarlyStoppingCallback

    trainer = make(
        tokenizer,
        tmp_path,
        {"name": "dpo", "beta": 0.1},
        learning_rate=0.5,
        max_steps=20,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_kl_to_ref",
        greater_is_better=False,
    )
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    kls = [entry["eval_kl_to_ref"] for entry in trainer.state.log_history if "eval_kl_to_ref" in entry]
    best = kls.index(min(kls))
    assert trainer.state.global_step == len(kls) == best + 3 < 20
    assert trainer.state.best_metric == kls[best]
    assert trainer.evaluate()["eval_kl_to_ref"] == pytest.approx(kls[best], rel=1e-4)
