"""Bad samples and bad oracles while a policy trains: a clear message, or counted and exact, never another loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.arguments import AlignmentArguments
from alignment.config import card_needs
from alignment.data import Row, Turn
from alignment.errors import UserError
from alignment.methods import method_names
from alignment.oracles import MatrixOracle, PanelOracle
from alignment.trainer import PreferenceTrainer
from tests.text.symbols import SPECIALS, SYMBOLS, cyclic_game, question_rows, symbol_model, symbol_tokenizer
from tests.text.test_gradients import CASES, SPECS

EOS = SPECIALS.index("<eos>")


class Heard:
    """An oracle that remembers what it was asked and always says the same."""

    def __init__(self, answer: float = 0.5) -> None:
        self.answer, self.texts = answer, set[str]()

    def prefer(self, prompts: list[str], left: list[str], right: list[str]) -> Tensor:
        self.texts |= {*left, *right}
        return torch.full((len(prompts),), self.answer, dtype=torch.float64)


def speaker(logits: dict[int, float]) -> Any:
    """A model that says these tokens, by their ids, with softmax probabilities, and no other."""
    model = symbol_model(logits_A=torch.zeros(len(SYMBOLS)))
    model.generation_config.suppress_tokens = None
    with torch.no_grad():
        state_H = model.model(torch.tensor([[SPECIALS.index("question")]])).last_hidden_state[0, -1]
        head_VH = torch.full((len(SPECIALS) + len(SYMBOLS), 1), -60.0) * state_H / state_H.square().sum()
        for token, logit in logits.items():
            head_VH[token] = logit * state_H / state_H.square().sum()
        model.lm_head.weight.copy_(head_VH)
    return model


def trainer_of(method: dict[str, Any], model: Any, folder: object, oracle: Any = None, **changes: Any) -> Any:
    if oracle is None:
        oracle = Heard()
    if card_needs(method["name"]).num_oracles == "many":
        oracle = PanelOracle({"a": oracle, "b": oracle})
    settings = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "num_completions": 3,
        "max_new_tokens": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PreferenceTrainer(
        model=model,
        ref_model=speaker({4: 1.0, 5: 0.0, 6: -1.0, EOS: 0.5}),
        args=AlignmentArguments(**settings | changes),
        train_dataset=question_rows(8),
        processing_class=symbol_tokenizer(),
        oracle=oracle,
        method=method,
    )


def logged(trainer: Any) -> dict[str, float]:
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


ONLINE = [case for case in CASES if card_needs(case.values[0]["name"]).samples_in_batches]  # type: ignore[index]


def test_every_online_method_is_here() -> None:
    assert SPECS.keys() >= {name for name in method_names() if card_needs(name).samples_in_batches}


@pytest.mark.parametrize("method", ONLINE)
def test_groups_that_are_all_alike_are_counted(method: dict[str, Any], tmp_path: object) -> None:
    """A policy that says one word: every group is alike. A loss of pairs is 0 and moves nothing; all are finite.

    A policy gradient has ``-returns log pi`` with log pi = 0 here, so its loss is 0 as well.
    """
    trainer = trainer_of(method, speaker({4: 60.0}), tmp_path)
    start = trainer.model.lm_head.weight.detach().clone()
    found = logged(trainer)
    assert found["identical_groups"] == 1.0 and found["empty_responses"] == 0.0
    # DPO's pair of a response with itself costs log 2, whatever the policy. Clipped SPO has the ratio 1 in place of the
    # log-prob: minus the return is kappa_ref (log pi - log ref) = -.1 log softmax(1, 0, -1, .5)[0] = .074657.
    expected = {"online_dpo": 0.693147, "spo": 0.074657 if "clip" in method else 0.0}.get(method["name"], 0.0)
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert torch.equal(trainer.model.lm_head.weight, start)


@pytest.mark.parametrize("method", ONLINE)
def test_empty_responses_are_counted_and_trained_on(method: dict[str, Any], tmp_path: object) -> None:
    """A policy that says nothing in half of its answers: the oracle sees an empty text, the end token is the answer.

    The log-prob of that token is what the loss reads, so lengths are 1 and nothing is undefined.
    """
    oracle = Heard()
    trainer = trainer_of(
        method, speaker({EOS: 0.0, 4: 0.0}), tmp_path, oracle, per_device_train_batch_size=8, num_completions=8
    )
    found = logged(trainer)
    assert 0.25 < found["empty_responses"] < 0.75
    assert found["identical_groups"] < 0.5
    assert torch.tensor(found["loss"]).isfinite() and trainer.model.lm_head.weight.isfinite().all()
    assert {"", "red"} <= oracle.texts


def test_a_policy_that_says_nothing_at_all(tmp_path: object) -> None:
    """Every answer is empty and every group alike: both shares are 1, in the log of an evaluation as well."""
    trainer = trainer_of({"name": "egpo", "tau": 0.1}, speaker({EOS: 60.0}), tmp_path)
    found = logged(trainer)
    assert (found["empty_responses"], found["identical_groups"], found["loss"]) == (1.0, 1.0, pytest.approx(0.0))
    evaluated = trainer.evaluate(trainer.train_dataset)
    assert (evaluated["eval_empty_responses"], evaluated["eval_identical_groups"]) == (1.0, 1.0)


def test_listed_responses_are_no_samples(tmp_path: object) -> None:
    """Where every response is listed once, none of them is counted as a sample gone wrong."""
    game = cyclic_game(tau=0.1)
    trainer = trainer_of(
        {"name": "egpo", "tau": 0.1},
        symbol_model(),
        tmp_path,
        MatrixOracle(game.prefs_XAA, responses=SYMBOLS),
        engine="enumerate",
        responses=list(SYMBOLS),
    )
    assert "identical_groups" not in logged(trainer)


@pytest.mark.parametrize(
    ("method", "answer"),
    [*((case.values[0], float("nan")) for case in ONLINE), *(({"name": "egpo", "tau": 0.1}, p) for p in (1.4, -0.2))],
)
def test_an_oracle_without_a_probability_stops_the_run(method: dict[str, Any], answer: float, tmp_path: object) -> None:
    """Before any step is taken, with the question that it was asked."""
    trainer = trainer_of(method, speaker({4: 0.0, 5: 0.0, 6: 0.0}), tmp_path, Heard(answer))
    start = trainer.model.lm_head.weight.detach().clone()
    with pytest.raises(UserError, match=r"expected a probability in \[0, 1\], got .* for prompt 'question'"):
        trainer.train()
    assert torch.equal(trainer.model.lm_head.weight, start)


def test_a_prompt_that_fills_the_context_is_named_before_anything_is_sampled(tmp_path: object) -> None:
    """The symbol model has 16 positions; a prompt is one token, so 15 new ones are room and 16 are not."""
    trainer_of({"name": "egpo", "tau": 0.1}, symbol_model(), tmp_path, max_new_tokens=15)
    with pytest.raises(UserError, match=r"16 behind every prompt in the 16 positions .* 8 of 8 .*max_prompt_length"):
        trainer_of({"name": "egpo", "tau": 0.1}, symbol_model(), tmp_path, max_new_tokens=16)


def test_no_prompt_left_is_an_error(tmp_path: object) -> None:
    """All prompts longer than the limit: counted, and nothing is trained on nothing."""
    rows = tuple(Row(prompt=(Turn("user", "question red green"),), source=f"q:{n}") for n in range(4))
    with pytest.raises(UserError, match=r"expected at least one usable row, found none: .*4"):
        PreferenceTrainer(
            model=symbol_model(),
            args=AlignmentArguments(output_dir=str(tmp_path), max_prompt_length=2),
            train_dataset=rows,
            processing_class=symbol_tokenizer(),
            oracle=Heard(),
            method={"name": "egpo", "tau": 0.1},
        )
