"""The whole text path estimates the exact gradient: sampler, opponent, judge, anchors and loss on a tiny model.

The model says at most two tokens out of seven, the end of text among them, so it has 43 responses, which can be listed
with their probabilities: some are cut, some end early, one is empty, and several token sequences read the same. That
the losses on listed responses are exact is shown in ``tests/methods/test_gradients.py``; here real samples are held
against them, within three standard errors of their mean, at fixed seeds.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from alignment.arguments import AlignmentArguments
from alignment.config import card_needs, text_gap
from alignment.data import encode_rows
from alignment.logps import score
from alignment.methods import build_method, method_names
from alignment.oracles import MatrixOracle, PanelOracle
from alignment.policies import CausalLMPolicy
from alignment.rounds import answer_prompts, compare_answers
from alignment.seeds import seeds_of
from alignment.trainer import PreferenceTrainer
from alignment.types import Completions, Feedback, LossInputs
from tests.methods.regression import random_preferences
from tests.text.symbols import question_rows, symbol_model, symbol_tokenizer

TOKENIZER = symbol_tokenizer()
EOS, QUESTION, VOCABULARY = 2, 3, 7
BATCH, NUM_BATCHES, SIGMAS = 128, 12, 3.0
PROMPTS = encode_rows(question_rows(BATCH * NUM_BATCHES), TOKENIZER, max_prompt_length=4, max_completion_length=2).rows

SPECS: dict[str, dict[str, dict[str, Any]]] = {
    "spo": {"": {"kappa_ref": 0.1}, "clipped": {"kappa_ref": 0.1, "clip": 0.2}},
    "egpo": {"": {"tau": 0.3}},
    "omd": {"": {"tau": 0.3}},
    "nash_md": {
        "reward-to-go": {"tau": 0.1, "mix": 0.6},
        "sequence": {"tau": 0.1, "mix": 0.6, "kl": "sequence"},
    },
    "nash_mp": {"": {"tau": 0.1, "eta": 0.5}},
    "nash_prox": {"": {"tau": 0.1, "eta": 0.5}},
    "online_ipo": {"": {"tau": 0.3}},
    "ipo_md": {"": {"tau": 0.3, "mix": 0.6}},
    "online_dpo": {"": {"beta": 0.7}},
    "inpo": {"": {"tau": 0.3, "eta": 0.5}},
    "mnpo": {"": {"eta": 0.5, "ref_weight": 0.2, "history_weights": [0.5, 0.3]}},
    "sppo": {"": {"eta": 2.0}},
    "onpo": {"": {"eta": 2.0}},
    # The argmin stays where it starts; weights that move with the samples are biased, as the exact game shows.
    "maxmin": {"": {"base": {"name": "spo", "kappa_ref": 0.1}, "mode": "group_argmin", "ema": 0.999}},
}

CASES = [
    pytest.param({"name": name, **options}, id=f"{name} {label}".strip())
    for name, variants in SPECS.items()
    for label, options in variants.items()
]


def language_model(seed: int) -> LlamaForCausalLM:
    """Every token may be said, with probabilities far from even."""
    model = symbol_model(seed=seed)
    model.generation_config.suppress_tokens = None
    with torch.no_grad():
        model.lm_head.weight.mul_(12.0)
    return model


def all_responses(length: int = 2) -> Completions:
    """Every response of at most ``length`` tokens that the model can give to the question, [1, A, 1 + length]."""

    def grown(ids: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        for token in range(VOCABULARY):
            if token == EOS or len(ids) + 1 == length:
                yield (*ids, token)
            else:
                yield from grown((*ids, token))

    ids = list(grown(()))
    mask_AT = torch.tensor([[True] * len(item) + [False] * (length - len(item)) for item in ids])
    ids_AT = torch.tensor([[*item, *[0] * (length - len(item))] for item in ids])
    first_A1 = torch.full((len(ids), 1), QUESTION)
    return Completions(
        input_ids_BGT=torch.cat([first_A1, ids_AT], 1)[None],
        attention_mask_BGT=torch.cat([first_A1 > 0, mask_AT], 1)[None],
        completion_mask_BGT=torch.cat([first_A1 < 0, mask_AT], 1)[None],
        valid_BG=torch.ones(1, len(ids), dtype=torch.bool),
    )


RESPONSES = all_responses()
TEXTS = [
    TOKENIZER.decode(ids_T[mask_T], skip_special_tokens=True)
    for ids_T, mask_T in zip(RESPONSES.input_ids_BGT[0], RESPONSES.completion_mask_BGT[0], strict=True)
]
UNIQUE = sorted(set(TEXTS))
# Decided opinions: another opponent is another gradient.
PREFS_KAA = torch.stack([3.0 * random_preferences(len(UNIQUE), seed) - 1.0 for seed in (0, 16)]).clamp(0.0, 1.0)


def probabilities(logits: Mapping[nn.Module, float], *, temperature: float = 1.0) -> Tensor:
    """Of all responses, [A], token by token: of one model, or of a geometric mixture with these weights."""
    ids_AT = RESPONSES.input_ids_BGT[0]
    mixed_ATV = torch.zeros(len(ids_AT), 2, VOCABULARY, dtype=torch.float64)
    with torch.no_grad():
        for model, weight in logits.items():
            mixed_ATV += weight * (model(ids_AT).logits[:, :-1].double() / temperature).log_softmax(-1)
    logps_AT = mixed_ATV.log_softmax(-1).gather(-1, ids_AT[:, 1:, None])[..., 0]
    return torch.where(RESPONSES.completion_mask_BGT[0, :, 1:], logps_AT, 0.0).sum(-1).exp()


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))]).double()


class Setting:
    """A trainer whose policy has left its reference and its slow target, and exact answers to hold it against."""

    def __init__(self, method: dict[str, Any], folder: object) -> None:
        self.method = build_method(method)
        self.needs = self.method.needs
        self.temperature = 1.5 if self.needs.full_support else 1.0
        start, ref, older = (language_model(seed) for seed in range(3))
        texts = {"responses": UNIQUE}
        members = [MatrixOracle(prefs_AA[None], **texts) for prefs_AA in PREFS_KAA]
        oracle: Any = (
            PanelOracle({"a": members[0], "b": members[1]}) if self.needs.num_oracles == "many" else members[0]
        )
        data = PROMPTS
        if self.needs.sampler == "prev":
            speaker = CausalLMPolicy(start, TOKENIZER, stop_token_ids=[EOS], temperature=1.0, max_new_tokens=2)
            data = answer_prompts(speaker, data, num_completions=3, batch_size=4096, seeds=seeds_of(len(data), 3))
            keep_alike = self.needs.feedback == "wins"
            data = compare_answers(data, oracle, keep_alike=keep_alike, batch_size=4096, seeds=range(len(data))).rows
        self.trainer = PreferenceTrainer(
            model=start,
            ref_model=ref,
            past_models=[older],
            args=AlignmentArguments(
                output_dir=str(folder),
                per_device_train_batch_size=BATCH,
                gradient_accumulation_steps=NUM_BATCHES,
                num_completions=3,
                opponent_completions=2,
                temperature=self.temperature,
                max_new_tokens=2,
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=data,
            processing_class=TOKENIZER,
            oracle=oracle,
            method=self.method,
        )
        # Prompts whose answers are all alike are left out of a loss of pairs: the rest counts for so much more.
        self.inflation = len(PROMPTS) / len(data)
        self.trainer.create_optimizer()
        self.start = copy.deepcopy(start)
        self.move(language_model(5), 0.6)

    @property
    def model(self) -> Any:
        return self.trainer.model

    @torch.no_grad()
    def move(self, other: nn.Module, weight: float) -> None:
        """The policy leaves its anchors: a straight line towards another model."""
        for mine, theirs in zip(self.model.parameters(), other.parameters(), strict=True):
            mine.lerp_(theirs, weight)

    def exact(self, sampler_A: Tensor | None = None, opponent_A: Tensor | None = None) -> Tensor:
        """The gradient where all responses carry their probabilities; sampler and opponent are those of the method."""
        mix = (
            {self.model: 1.0 - self.needs.mix, self.trainer.anchors._copies["ref"]: self.needs.mix}
            if (self.needs.mix)
            else {self.model: 1.0}
        )
        if sampler_A is None:
            sampler_A = {
                "policy": lambda: probabilities({self.model: 1.0}, temperature=self.temperature),
                "mixture": lambda: probabilities(mix),
                "prev": lambda: probabilities({self.start: 1.0}),
            }[self.needs.sampler]()
        assert float(sampler_A.sum()) == pytest.approx(1.0, abs=1e-6)
        if opponent_A is None:
            opponent_A = {
                "none": lambda: None,
                "group": lambda: sampler_A,
                "fresh": lambda: probabilities({self.model: 1.0}),
                "mixture": lambda: probabilities(mix),
                "target": lambda: probabilities({self.trainer.anchors._copies["target"]: 1.0}),
                "ref": lambda: probabilities({self.trainer.anchors._copies["ref"]: 1.0}),
            }[self.needs.opponent]()
        index_A = torch.tensor([UNIQUE.index(text) for text in TEXTS])
        prefs_KAA = PREFS_KAA[:, index_A][:, :, index_A]
        if self.needs.num_oracles == "many":
            assert opponent_A is not None
            utilities_K = prefs_KAA @ opponent_A @ sampler_A
            assert float((utilities_K[0] - utilities_K[1]).abs()) > 0.01
            prefs_KAA = prefs_KAA[utilities_K.argmin()][None]
        prefs_KAA = prefs_KAA[:1]
        feedback = (
            Feedback(wins_KBG=(prefs_KAA @ opponent_A)[:, None])
            if self.needs.feedback == "wins"
            else Feedback(prefs_KBGG=prefs_KAA[:, None])
        )
        scores, anchors = score(self.model, RESPONSES), self.trainer.anchors.score(RESPONSES)
        x = LossInputs(
            logps_BG=scores.logps_BG,
            lengths_BG=RESPONSES.lengths_BG,
            valid_BG=RESPONSES.valid_BG,
            feedback=feedback,
            weights_BG=sampler_A[None],
            anchors={name: scored.logps_BG for name, scored in anchors.items()},
            token_logps_BGT=scores.token_logps_BGT,
            token_mask_BGT=scores.token_mask_BGT,
            token_anchors={name: scored.token_logps_BGT for name, scored in anchors.items()},
        )
        return self.inflation * flat_gradient(self.method.loss(x).loss_B.sum(), self.model)

    def sampled(self) -> Tensor:
        """Gradients [M, P] of the micro-batches of one step, each an estimate; their mean is that of the step."""
        self.trainer.current_gradient_accumulation_steps = NUM_BATCHES
        batches = iter(self.trainer.get_train_dataloader())
        inputs, total = self.trainer.get_batch_samples(batches, NUM_BATCHES, self.trainer.args.device)
        return torch.stack(
            [
                flat_gradient(self.trainer.compute_loss(self.model, item, num_items_in_batch=total), self.model)
                for item in inputs
            ]
        )


def check_unbiased(sampled_MP: Tensor, exact_P: Tensor, *more: Tensor) -> None:
    """Along the exact gradient, two directions of no meaning and ``more``; sharp enough to refute."""
    generator = torch.Generator().manual_seed(0)
    directions = [exact_P, *torch.randn(2, len(exact_P), generator=generator, dtype=torch.float64), *more]
    for number, direction_P in enumerate(directions):
        # A direction of length 0 has nothing to tell.
        along_M = (sampled_MP - exact_P) @ direction_P / direction_P.norm().clamp(min=1e-12)
        error = float(along_M.std() / len(along_M) ** 0.5)
        assert abs(float(along_M.mean())) <= SIGMAS * error
        if number == 0:
            assert error < 0.1 * float(exact_P.norm()), "too few samples to tell a wrong gradient"


def test_every_method_that_samples_on_text_is_here() -> None:
    samples = {
        name for name in method_names() if card_needs(name).sampler != "dataset" and not text_gap(card_needs(name))
    }
    assert SPECS.keys() >= samples


@pytest.mark.slow
@pytest.mark.parametrize("method", CASES)
def test_samples_estimate_the_exact_gradient(method: dict[str, Any], tmp_path: object) -> None:
    """1,536 prompts of three responses: the mean gradient of all weights, against all responses listed."""
    setting = Setting(method, tmp_path)
    exact = setting.exact()
    # Against another opponent the gradient would lie elsewhere in this direction.
    stranger_A = probabilities(
        {setting.model if setting.needs.opponent not in ("fresh", "ref") else setting.start: 1.0}
    )
    check_unbiased(setting.sampled(), exact, exact - setting.exact(opponent_A=stranger_A))


@pytest.mark.slow
def test_the_second_stage_meets_the_look_ahead(tmp_path: object) -> None:
    """EGPO's real gradient is taken at the start; its opponent is the policy one step ahead, which samples as well."""
    setting = Setting({"name": "egpo", "tau": 0.3}, tmp_path)
    start = [parameter.detach().clone() for parameter in setting.model.parameters()]
    sampled = setting.sampled()
    optimizer = setting.trainer._extragradient()
    optimizer.param_groups[0]["lr"] = 0.05
    for parameter, gradient in zip(
        setting.model.parameters(), sampled.mean(0).split([value.numel() for value in start]), strict=True
    ):
        parameter.grad = gradient.reshape(parameter.shape).to(parameter)
    optimizer.step()
    ahead_A = probabilities({setting.model: 1.0})
    sampler_A = probabilities({setting.model: 1.0}, temperature=setting.temperature)
    setting.trainer.state.global_step += 1
    sampled = setting.sampled()
    assert all(torch.equal(mine, then) for mine, then in zip(setting.model.parameters(), start, strict=True))
    assert 0.5 * float((ahead_A - probabilities({setting.model: 1.0})).abs().sum()) > 0.05
    exact, of_the_start = setting.exact(sampler_A, ahead_A), setting.exact(sampler_A)
    check_unbiased(sampled, exact, exact - of_the_start)
    with pytest.raises(AssertionError):
        check_unbiased(sampled, of_the_start, exact - of_the_start)


@pytest.mark.parametrize("length", [2, 3])
def test_token_level_credit_is_the_gradient_of_whole_sequences(length: int, tmp_path: object) -> None:
    """Nash-MD's reward-to-go, over all responses of a language model that may end at any token: 43 or 259 of them.

    Equal to the gradient with whole-sequence log-ratios and to that of the regularised win rate itself. Credit for a
    token's own log-ratio alone, as trl's trainer gave, is another direction. Log-probs are float32.
    """
    responses = all_responses(length)
    model, ref = language_model(0), language_model(1)
    scores, ref_scores = score(model, responses), score(ref, responses)
    with torch.no_grad():
        ref_BGT = ref_scores.token_logps_BGT
    mask_BGT = scores.token_mask_BGT
    probability_BG = scores.logps_BG.exp()
    assert float(probability_BG.detach().sum()) == pytest.approx(1.0, abs=1e-5)
    wins_BG = torch.rand(probability_BG.shape, generator=torch.Generator().manual_seed(0))
    x = LossInputs(
        logps_BG=scores.logps_BG,
        lengths_BG=responses.lengths_BG,
        valid_BG=responses.valid_BG,
        feedback=Feedback(wins_KBG=wins_BG[None]),
        weights_BG=probability_BG.detach(),
        anchors={"ref": ref_BGT.sum(-1)},
        token_logps_BGT=scores.token_logps_BGT,
        token_mask_BGT=mask_BGT,
        token_anchors={"ref": ref_BGT},
    )
    tau = 0.3
    log_ratios_BGT = scores.token_logps_BGT - ref_BGT
    own_BGT = ((wins_BG - 0.5)[..., None] - tau * log_ratios_BGT).detach()
    losses = {
        "value": -(probability_BG * (wins_BG - tau * log_ratios_BGT.sum(-1))).sum(),
        "own token": -(probability_BG.detach() * (own_BGT * scores.token_logps_BGT).sum(-1)).sum(),
        **{
            kl: build_method({"name": "nash_md", "tau": tau, "mix": 0.125, "kl": kl}).loss(x).loss_B.sum()
            for kl in ("reward_to_go", "sequence")
        },
    }
    gradients = {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])
        for name, loss in losses.items()
    }
    scale = float(gradients["value"].norm())
    for kl in ("reward_to_go", "sequence"):
        assert float((gradients[kl] - gradients["value"]).norm()) < 1e-4 * scale
    assert float((gradients["own token"] - gradients["value"]).norm()) > 0.05 * scale
