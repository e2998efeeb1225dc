"""The trainer against TRL, against itself in other batch shapes, and the two stages of extragradient."""

import copy
import importlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from alignment import logps
from alignment import trainer as trainer_module
from alignment.annotator import Annotator
from alignment.arguments import AlignmentArguments
from alignment.config import card_needs, text_gap
from alignment.data import Batch, Comparison, Row, Turn
from alignment.errors import UserError
from alignment.logps import Scoring, scoring_of
from alignment.methods import method_names
from alignment.oracles import MatrixOracle, RuleOracle
from alignment.oracles.rules import shorter
from alignment.stages import Annotated
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.trainer import PreferenceTrainer
from alignment.trainers import DPOTrainer, EGPOTrainer
from tests.text.symbols import SYMBOLS, cyclic_game, question_rows, symbol_model, symbol_tokenizer

PAIRS = [
    ("What is the capital of France?", "Paris.", "Some big city or other."),
    ("How many legs has a spider?", "Eight legs.", "A few, I guess."),
    ("Name a primary colour.", "Red is one.", "Colours are hard to name, honestly."),
    ("Is water wet?", "Yes, water is wet.", "Who knows."),
    ("What follows Monday?", "Tuesday.", "Another day of the week will follow it."),
    ("Give me a prime number.", "Seven.", "Primes are numbers of a kind."),
    ("What do bees make?", "Bees make honey.", "Stuff."),
    ("Where does the sun rise?", "In the east.", "In the sky, of course, up there."),
]


def pair_rows(weights: Sequence[float] = (1.0,) * 8) -> tuple[Row, ...]:
    return tuple(
        Row(
            prompt=(Turn("user", prompt),),
            responses=(chosen, rejected),
            comparisons=(Comparison(0, 1),),
            scores=(1.0, 0.0),
            weight=weight,
            source=f"pairs:{i + 1}",
        )
        for i, ((prompt, chosen, rejected), weight) in enumerate(zip(PAIRS, weights, strict=True))
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer([text for pair in PAIRS for text in pair], vocab_size=300)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return tiny_model(tokenizer, hidden_size=16, num_layers=2, num_heads=2)


def arguments(folder: object, **changes: Any) -> AlignmentArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.5,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return AlignmentArguments(**settings | changes)


def parameters(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def make_trainer(
    model: Any, tokenizer: Any, folder: object, method: dict[str, Any], **changes: Any
) -> PreferenceTrainer:
    rows = changes.pop("rows", None) or pair_rows()
    return PreferenceTrainer(
        model=model,
        ref_model=changes.pop("ref_model", None),
        args=arguments(folder, **changes),
        train_dataset=rows,
        processing_class=tokenizer,
        method=method,
    )


def first_loss(trainer: PreferenceTrainer) -> Tensor:
    """The loss of the first effective batch, as the loop would take it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs, total = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    return trainer.compute_loss(trainer.model, inputs[0], num_items_in_batch=total)


def test_arguments_decide_how_log_probs_are_computed(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    """The choice reaches the policy and its copy, is said with a reason, and changes no loss."""
    losses = []
    for layout, said in (
        ("dense", "off (scoring.layout: dense)"),
        ("prefix", "on (in every batch;"),
        ("auto", "on (in every batch that costs less that way;"),
    ):
        method = {"name": "lipo", "beta": 0.1}
        trainer = make_trainer(
            copy.deepcopy(model), tokenizer, tmp_path, method, rows=ragged_rows((1.0,) * 8), scoring_layout=layout
        )
        assert trainer.notes[0].startswith(f"prefix sharing: {said}") and "that way, and" in trainer.notes[0]
        assert trainer.notes[1].startswith("logits: of completion tokens only")
        with trainer.anchors.model("ref") as ref:
            assert ref is not trainer.model
            assert scoring_of(ref) == scoring_of(trainer.model) == Scoring(layout=layout)
        losses.append(first_loss(trainer).item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    model.config._attn_implementation = "flash_attention_2"
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(UserError, match=r"scoring.layout: .* 'prefix', but the attention 'flash_attention_2' takes no"),
    ):
        patch.setattr(logps, "_why_whole", lambda _: None)
        make_trainer(model, tokenizer, tmp_path, {"name": "dpo", "beta": 0.1}, scoring_layout="prefix")


def reads_its_responses(name: str) -> bool:
    """Whether language models can train by it on a data set, one prompt at a time."""
    needs = card_needs(name)
    # A statistic of the micro-batch, as kto and aot have, changes with accumulation, and their cards say so.
    return not (text_gap(needs) or needs.samples_in_batches or needs.micro_batch_statistics)


def ragged_rows(weights: Sequence[float]) -> tuple[Row, ...]:
    """Lists of two to four responses, in a strict order of scores; the responses of other prompts fill the lists."""
    answers = [(chosen, rejected) for _, chosen, rejected in PAIRS]
    rows = []
    for i, (row, weight) in enumerate(zip(pair_rows(), weights, strict=True)):
        others = [*answers[(i + 1) % 8], *answers[(i + 2) % 8]]
        responses = (*row.responses, *others)[: 2 + i % 3]
        pairs = tuple(Comparison(a, b) for a, b in itertools.combinations(range(len(responses)), 2))
        scores = tuple(1.0 - 0.25 * k for k in range(len(responses)))
        rows.append(replace(row, responses=responses, comparisons=pairs, scores=scores, weight=weight))
    return tuple(rows)


@pytest.mark.parametrize("name", [name for name in method_names() if reads_its_responses(name)])
def test_accumulation_equals_the_large_batch(
    name: str, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    """Invariant 111: 8 prompts at once, and one at a time over 8 micro-batches, give the same losses and parameters.

    Lists are ragged, rows weigh differently, and one weighs nothing, so that a mean of means would not pass.
    """
    rows = ragged_rows(weights=(1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 1.0, 1.0))
    options = importlib.import_module(f"tests.methods.test_{name}").OPTIONS
    start, ended, said = parameters(model), [], []
    for batch_size, steps in ((8, 1), (1, 8)):
        policy = copy.deepcopy(model)
        trainer = make_trainer(
            policy,
            tokenizer,
            tmp_path,
            {"name": name, **options},
            rows=rows,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            learning_rate=0.02,
            max_steps=2,
            logging_strategy="steps",
            logging_steps=1,
        )
        trainer.train()
        ended.append(parameters(policy))
        said.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert float((ended[0] - start).abs().max()) > 1e-5
    # Twice what single precision leaves of the square of a difference of log-probs near 65.
    assert said[0] == pytest.approx(said[1], rel=2e-5, abs=1e-6)
    torch.testing.assert_close(ended[0], ended[1], rtol=1e-5, atol=5e-6)


def test_a_weight_is_a_number_of_rows(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    """Eight rows that weigh ten have the loss of ten rows; taken for eight, or seven, the mean would be another one."""
    weights, method = (3, 1, 0, 1, 1, 1, 1, 2), {"name": "simpo", "beta": 2.0, "gamma": 1.0}
    repeated = tuple(row for row, weight in zip(pair_rows(), weights, strict=True) for _ in range(weight))
    losses = [
        first_loss(make_trainer(model, tokenizer, tmp_path, method, rows=rows, per_device_train_batch_size=len(rows)))
        for rows in (pair_rows(weights), repeated, pair_rows())
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert losses[0].item() != pytest.approx(losses[2].item(), rel=1e-4)


def enumerated(folder: object, *, name: str = "egpo", **changes: Any) -> PreferenceTrainer:
    """A trainer on the symbol game with AdamW, all weights, responses enumerated."""
    game = cyclic_game(tau=0.1)
    return PreferenceTrainer(
        model=symbol_model(seed=3),
        args=arguments(
            folder,
            **{
                "optim": "adamw_torch",
                "learning_rate": 1e-2,
                "engine": "enumerate",
                "responses": list(SYMBOLS),
                "max_new_tokens": 1,
                "per_device_train_batch_size": 2,
                "max_steps": 4,
            }
            | changes,
        ),
        train_dataset=question_rows(8),
        processing_class=symbol_tokenizer(),
        oracle=MatrixOracle(game.prefs_XAA, responses=SYMBOLS),
        method={"name": name, "tau": 0.1, **({"eta": 0.5, "decay": 0.5} if name == "nash_mp" else {})},
    )


@pytest.mark.parametrize("name", ["egpo", "nash_mp"])
def test_what_is_sampled_does_not_depend_on_how_a_batch_is_divided(name: str, tmp_path: object) -> None:
    """Four prompts at once, and one after the other: the same answers, so the same losses, weights and evaluations."""
    weights, said = [], []
    for batch_size, steps in ((4, 1), (1, 4)):
        trainer = enumerated(
            tmp_path,
            name=name,
            engine="transformers",
            responses=None,
            num_completions=2,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            per_device_eval_batch_size=batch_size,
            max_steps=2,
            # Adam divides by next to nothing here, and makes something of rounding.
            optim="sgd",
            learning_rate=0.5,
            logging_strategy="steps",
            logging_steps=1,
        )
        trainer.train()
        weights.append(parameters(trainer.model))
        said.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        evaluated = trainer.evaluate(question_rows(6))
        said[-1] += [evaluated["eval_loss"], evaluated["eval_kl_to_ref"]]
    assert said[0] == pytest.approx(said[1], rel=1e-4, abs=1e-6) and said[0][-1] > 0
    with pytest.raises(UserError, match="evaluate: expected held-out rows, found none"):
        trainer.evaluate()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_the_second_stage_starts_where_the_first_did(tmp_path: object) -> None:
    """Invariant 41: when the loss of stage 1 is computed, weights and moments are bit-identical to those of stage 0."""
    seen: list[tuple[int, Tensor, list[Tensor]]] = []

    class Watched(PreferenceTrainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Tensor:
            moments = [
                value.clone()
                for state in self._extragradient().inner.state.values()
                for value in state.values()
                if isinstance(value, Tensor)
            ]
            seen.append((self.step_in_iteration, parameters(self.model), moments))
            return super().compute_loss(*arguments, **options)

    trainer = enumerated(tmp_path)
    trainer.__class__ = Watched
    trainer.train()
    assert [stage for stage, _, _ in seen] == [0, 1] * 4
    for (_, first, first_moments), (_, second, second_moments) in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(first, second)
        assert len(first_moments) == len(second_moments)
        assert all(torch.equal(a, b) for a, b in zip(first_moments, second_moments, strict=True))
    assert not torch.equal(seen[0][1], seen[2][1])


def test_counts_are_iterations(tmp_path: object) -> None:
    """Steps, warm-up and the learning rate count iterations; both stages share rate and prompts."""
    rates: list[float] = []
    prompts: list[tuple[str, ...]] = []

    trainer = enumerated(tmp_path, lr_scheduler_type="linear", warmup_steps=2)

    class Watched(Annotator):
        def annotate(self, batch: Batch, purpose: str) -> Annotated:
            prompts.append(tuple(row.source for row in batch.rows))
            rates.append(trainer._get_learning_rate())
            return super().annotate(batch, purpose)

    trainer.annotator.__class__ = Watched
    trainer.train()
    assert trainer.state.global_step == 8
    assert rates[::2] == rates[1::2] == pytest.approx([0.0, 0.005, 0.01, 0.005])
    assert prompts[::2] == prompts[1::2] and len(set(prompts)) == 4


class Calendar(TrainerCallback):
    """Which iteration it was when something happened."""

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self.seen: dict[str, list[float]] = {"log": [], "evaluate": [], "save": []}

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.seen["log"].append(state.global_step / self.stages)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seen["evaluate"].append(state.global_step / self.stages)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seen["save"].append(state.global_step / self.stages)


@pytest.mark.parametrize("interval", [2, 0.4])
@pytest.mark.parametrize("name", ["omd", "egpo"])
def test_logs_evaluations_and_checkpoints_fall_on_whole_iterations(
    name: str, interval: float, tmp_path: object
) -> None:
    """Every second of five iterations, given as a count or as a fraction, with one stage and with two."""
    tokenizer = symbol_tokenizer()
    trainer = PreferenceTrainer(
        model=symbol_model(),
        args=arguments(
            tmp_path,
            max_steps=5,
            per_device_train_batch_size=2,
            engine="enumerate",
            responses=list(SYMBOLS),
            logging_strategy="steps",
            eval_strategy="steps",
            save_strategy="steps",
            logging_steps=interval,
            eval_steps=interval,
            save_steps=interval,
        ),
        train_dataset=question_rows(4),
        eval_dataset=question_rows(2),
        processing_class=tokenizer,
        oracle=MatrixOracle(cyclic_game(tau=0.1).prefs_XAA, responses=SYMBOLS),
        method={"name": name, "tau": 0.1},
    )
    calendar = Calendar(trainer.needs.stages)
    trainer.add_callback(calendar)
    trainer.train()
    # transformers evaluates and saves once more at the end.
    assert calendar.seen == {"log": [2, 4], "evaluate": [2, 4, 5], "save": [2, 4, 5]}


@pytest.mark.parametrize("name", ["egpo", "nash_mp"])
def test_resumed_equals_uninterrupted(name: str, tmp_path: Any) -> None:
    """A run of four iterations, and one of two resumed for two more, end alike; slow targets resume as well."""
    whole = enumerated(tmp_path / "whole", name=name)
    whole.train()
    half = enumerated(tmp_path / "half", name=name, save_strategy="steps", save_steps=2)
    half.train()
    checkpoint = tmp_path / "half" / f"checkpoint-{2 * half.needs.stages}"
    resumed = enumerated(tmp_path / "half", name=name)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(parameters(resumed.model), parameters(whole.model), rtol=0, atol=1e-6)


def test_sampled_rollouts_raise_the_win_rate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    """EGPO from samples of a tiny model and a rule: runs, evaluates, and never trains on the answers in the file."""
    trainer = EGPOTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=2, max_new_tokens=8, optim="adamw_torch", learning_rate=1e-3),
        train_dataset=pair_rows(),
        eval_dataset=pair_rows(),
        processing_class=tokenizer,
        oracle=RuleOracle(shorter),
        method_options={"tau": 0.1},
    )
    assert all(row.completion_ids == () for row in trainer.train_dataset)
    before = trainer.evaluate()
    assert 0.0 <= before["eval_win_rate_vs_ref"] <= 1.0
    start = parameters(model)
    trainer.train()
    assert not torch.equal(parameters(model), start)


def test_mistakes_are_named_before_training(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    """What is missing is said in one line."""
    common = {"model": model, "args": arguments(tmp_path), "train_dataset": pair_rows()}
    with pytest.raises(UserError, match="processing_class"):
        DPOTrainer(**common, method_options={"beta": 0.1})
    with pytest.raises(UserError, match="needs an oracle"):
        EGPOTrainer(**common, processing_class=tokenizer, method_options={"tau": 0.1})
    with pytest.raises(UserError, match=r"expected method=\{'name': 'dpo', \.\.\.\}, got 'dpo'"):
        PreferenceTrainer(**common, processing_class=tokenizer, method="dpo")  # type: ignore[arg-type]
    dpo: Any = {"method": {"name": "dpo", "beta": 0.1}, "processing_class": tokenizer}
    dicts = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    for key, value, said in (
        ("model", "gpt2", r"expected model=AutoModelForCausalLM\.from_pretrained\(\.\.\.\), a model, got str"),
        ("args", TrainingArguments(use_cpu=True), r"expected args=AlignmentArguments\(\.\.\.\), got TrainingArguments"),
        ("train_dataset", None, r"expected train_dataset=read_rows\(\.\.\.\)\.rows, got None"),
        ("train_dataset", [*pair_rows(), *dicts], r"found a dict among \d+; alignment\.data\.read_rows\(DATA\)\.rows"),
    ):
        with pytest.raises(UserError, match=said):
            PreferenceTrainer(**{**common, **dpo, key: value})
    with pytest.raises(UserError, match=r"eval_strategy: expected held-out rows \(eval_dataset, .* with 'epoch'"):
        PreferenceTrainer(**{**common, **dpo, "args": arguments(tmp_path, eval_strategy="epoch")})
    pattern = (
        r"'q_proj', a regular expression for whole names, such as model\.embed_tokens, model\.layers\.0\.self_attn"
    )
    for modules, found in (
        (["foo"], r"\['foo'\]"),
        (["norm"], r"\['norm'\]"),
        ([], r"\[\]"),
        ("", "''"),
        ("q_proj", pattern),
        ("[", r"'\['"),
    ):
        lora = LoraConfig(target_modules=modules)
        said = r"policy\.lora\.target_modules: expected names of modules of the model, such as \[.*q_proj.*, got "
        with pytest.raises(UserError, match=said + found):
            PreferenceTrainer(**common, **dpo, peft_config=lora)
    with pytest.raises(UserError, match="report_to: expected"):
        arguments(tmp_path, report_to="nobody")
    with pytest.raises(UserError, match="method_options"):
        PreferenceTrainer(**common, processing_class=tokenizer, method={"name": "dpo", "beta": 0.1}, method_options={})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": -1.0}, "learning_rate: expected a finite number of at least 0, got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number of at least 0, got nan"),
        ({"adam_beta1": 1.0}, "adam_beta1: expected a number in [0, 1), got 1.0"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers: expected at least 0, got -1"),
        ({"max_steps": 0}, "max_steps: expected at least 1, or -1 for num_train_epochs, got 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected at least 1, got 0"),
        (
            {"max_steps": -1, "num_train_epochs": 0},
            "num_train_epochs: expected a finite number above 0 without max_steps, got 0",
        ),
        *(
            (
                {"logging_strategy": "steps", "logging_steps": value},
                "logging_steps: expected a whole number above 0, or a fraction of the run below 1, got " + str(value),
            )
            for value in (0, -1, 2.5, float("inf"))
        ),
    ],
    ids=str,
)
def test_numbers_that_nothing_trains_with_are_refused(settings: dict[str, Any], said: str, tmp_path: object) -> None:
    with pytest.raises(UserError) as caught:
        arguments(tmp_path, **settings)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"optim_args": "foo"},
            r"training\.optim, training\.optim_args: expected what makes an optimizer, got 'sgd' "
            r"with the options 'foo' \(not enough values to unpack",
        ),
        (
            {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"foo": 1}},
            r"training\.lr_scheduler_type, training\.lr_scheduler_kwargs: expected what makes a scheduler, got "
            r"'linear' with the options \{'foo': 1\} \(.* unexpected keyword argument 'foo'\)",
        ),
        (
            {"optim_args": "momentum=0.9,foo=1"},
            r"training\.optim_args: expected options that 'sgd' reads, got foo, which would change nothing",
        ),
    ],
    ids=["optimizer", "scheduler", "unread"],
)
@pytest.mark.parametrize("method", [{"name": "dpo", "beta": 0.1}, {"name": "egpo", "tau": 0.1}], ids=["one", "two"])
def test_what_makes_no_optimizer_or_scheduler_is_named(
    method: dict[str, Any],
    settings: dict[str, Any],
    said: str,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before rows are encoded, with one stage an iteration and with two."""

    def fail(*arguments: object) -> None:
        raise AssertionError("encoded rows")

    monkeypatch.setattr(trainer_module, "encode_for", fail)
    with pytest.raises(UserError, match=said):
        PreferenceTrainer(
            model=model,
            args=arguments(tmp_path, **settings),
            train_dataset=pair_rows(),
            processing_class=tokenizer,
            oracle=RuleOracle(shorter),
            method=method,
        )


def test_what_only_the_model_shows_is_named_when_training_begins(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an optimizer of chosen modules, of which the model has none."""

    def look_at_the_model(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        assert list(model.named_modules())
        raise ValueError("No target modules found")

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(look_at_the_model))
    trainer = make_trainer(model, tokenizer, tmp_path, {"name": "dpo", "beta": 0.1})
    with pytest.raises(UserError, match=r"training\.optim, training\.optim_args: .* \(No target modules found\)"):
        trainer.train()


def test_a_given_optimizer_stands_for_that_of_the_arguments(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: object
) -> None:
    trainer = PreferenceTrainer(
        model=model,
        args=arguments(tmp_path, optim_args="foo"),
        train_dataset=pair_rows(),
        processing_class=tokenizer,
        method={"name": "dpo", "beta": 0.1},
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
    )
    trainer.train()
