"""The geometric mixture of two models: exact at a token, cached, right under LoRA, and the methods that need it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.anchors import AnchorSet
from alignment.arguments import AlignmentArguments
from alignment.games.updates import geometric_mixture
from alignment.methods import build_method
from alignment.oracles import MatrixOracle
from alignment.policies import CausalLMPolicy, GeometricMixture
from alignment.tabular import run_tabular
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.trainer import PreferenceTrainer
from alignment.types import Completions, Frozen, Needs
from tests.text.symbols import SYMBOLS, cyclic_game, question_rows, symbol_model, symbol_policy, symbol_tokenizer

SIZES = {"hidden_size": 16, "num_layers": 2, "num_heads": 2}
START = torch.tensor([1.0, 0.0, -1.0])


@pytest.mark.parametrize(("mix", "temperature"), [(0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (1.0, 2.0)])
def test_one_token_has_the_exact_distribution(mix: float, temperature: float) -> None:
    """20,000 samples: each share within five standard errors (at most 1.8 %) of p^(1-mix) r^mix normalised; it is the
    mixture that has the temperature, and not the policy in it."""
    game = cyclic_game(tau=0.1)
    model, ref = symbol_model(logits_A=START), symbol_model(logits_A=game.ref_XA[0].log())
    tokenizer = symbol_tokenizer()
    policy = CausalLMPolicy(model, tokenizer, stop_token_ids=[2], temperature=temperature, max_new_tokens=1)
    ids = torch.tensor([[[3]]])
    prompt = Completions(
        input_ids_BGT=ids,
        attention_mask_BGT=torch.ones_like(ids, dtype=torch.bool),
        completion_mask_BGT=torch.zeros_like(ids, dtype=torch.bool),
        valid_BG=torch.ones(1, 1, dtype=torch.bool),
    )
    generator = torch.Generator().manual_seed(0)
    drawn = policy.mixed(lambda: nullcontext(ref), mix).sample(prompt, num_completions=20_000, generator=generator)
    share_A = torch.bincount(drawn.input_ids_BGT[0, :, -1], minlength=7)[4:] / 20_000
    mixture_A = geometric_mixture(symbol_policy(model), game.ref_XA, mix=mix)[0]
    expected_A = (mixture_A.log() / temperature).softmax(-1)
    torch.testing.assert_close(share_A.double(), expected_A, rtol=0, atol=0.018)


class Counted(nn.Module):
    """Counts the tokens that a model reads."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config, self.num_tokens = model, model.config, 0

    def forward(self, **inputs: Any) -> Any:
        self.num_tokens += inputs["input_ids"].numel()
        return self.model(**inputs)


def two_models() -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(["some words to say"], vocab_size=280)
    return tiny_model(tokenizer, **SIZES, seed=0).eval(), tiny_model(tokenizer, **SIZES, seed=1).eval()


def test_the_cache_changes_nothing_and_saves_everything() -> None:
    """Two prompts of different length, six tokens: as one forward over the whole text without padding, to 1e-5."""
    model, ref = two_models()
    counted = Counted(ref)
    ids_NT = torch.tensor([[0, 0, 20, 21], [30, 31, 32, 33]])
    mask_NT = torch.tensor([[False, False, True, True], [True] * 4])
    mixture = GeometricMixture(lambda: nullcontext(counted), 0.3, mask_NT)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        scores_NV = torch.stack([last_logits(model, row[row_mask]) for row, row_mask in rows(ids_NT, mask_NT)])
        expected_NV = 0.7 * scores_NV.log_softmax(-1) + 0.3 * torch.stack(
            [last_logits(ref, row[row_mask]).log_softmax(-1) for row, row_mask in rows(ids_NT, mask_NT)]
        )
        torch.testing.assert_close(mixture(ids_NT, scores_NV), expected_NV.log_softmax(-1), rtol=0, atol=1e-5)
        new_N1 = torch.randint(6, 260, (2, 1), generator=generator)
        ids_NT, mask_NT = torch.cat([ids_NT, new_N1], 1), torch.cat([mask_NT, torch.ones(2, 1, dtype=torch.bool)], 1)
    assert counted.num_tokens == 2 * 4 + 2 * 5, "the prompt once, then one token a step"


def rows(ids_NT: Tensor, mask_NT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(ids_NT, mask_NT, strict=True)


@torch.no_grad()
def last_logits(model: Any, ids_T: Tensor) -> Tensor:
    return model(input_ids=ids_T[None]).logits[0, -1]


def test_each_prompt_is_mixed_under_its_own_mask() -> None:
    """Prompts of two tokens and of four, three answers each: what a prompt is answered with alone, by its seed."""
    model, ref = two_models()
    # Sharp, so that one token more or less in front is another distribution.
    with torch.no_grad():
        for parameter in ref.parameters():
            parameter.mul_(10.0)
    tokenizer = tiny_tokenizer(["some words to say"], vocab_size=280)
    policy = CausalLMPolicy(model, tokenizer, stop_token_ids=[2], temperature=1.0, max_new_tokens=6)
    # All weight on the reference: its own mask decides alone.
    mixed = policy.mixed(lambda: nullcontext(ref), 1.0)

    def answers(ids_BT: Tensor, seeds: list[int]) -> list[list[int]]:
        ids_B1T = ids_BT[:, None]
        prompts = Completions(
            input_ids_BGT=ids_B1T,
            attention_mask_BGT=ids_B1T > 0,
            completion_mask_BGT=torch.zeros_like(ids_B1T, dtype=torch.bool),
            valid_BG=torch.ones(ids_B1T.shape[:2], dtype=torch.bool),
        )
        found = mixed.sample_by_seeds(prompts, num_completions=3, seeds=seeds)
        groups = zip(found.input_ids_BGT.flatten(0, 1), found.completion_mask_BGT.flatten(0, 1), strict=True)
        return [ids_T[mask_T].tolist() for ids_T, mask_T in groups]

    short, long = torch.tensor([20, 21]), torch.tensor([30, 31, 32, 33])
    together = answers(torch.stack([torch.nn.functional.pad(short, (2, 0)), long]), [1, 2])
    assert together == answers(short[None], [1]) + answers(long[None], [2])


def test_a_reference_with_flex_attention_is_asked_by_sdpa() -> None:
    """A growing cache would be compiled for at every token."""
    _, ref = two_models()
    flex = copy.deepcopy(ref)
    flex.set_attn_implementation("flex_attention")
    mask_NT, ids_NT = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[20, 21]])
    scores_NV = torch.zeros(1, ref.config.vocab_size)
    mixed = [
        GeometricMixture(lambda module=module: nullcontext(module), 0.5, mask_NT)(ids_NT, scores_NV)
        for module in (ref, flex)
    ]
    assert torch.equal(*mixed)
    assert flex.config._attn_implementation == "flex_attention"


def test_what_is_forbidden_stays_so() -> None:
    _, ref = two_models()
    mask_NT = torch.ones(1, 2, dtype=torch.bool)
    scores_NV = torch.zeros(1, ref.config.vocab_size)
    scores_NV[0, 5:] = -torch.inf
    for mix in (0.0, 0.5, 1.0):
        mixed_NV = GeometricMixture(lambda: nullcontext(ref), mix, mask_NT)(torch.tensor([[20, 21]]), scores_NV)
        assert mixed_NV[0, 5:].isneginf().all() and mixed_NV[0, :5].isfinite().all()


def test_an_adapter_is_mixed_with_its_base_and_not_with_itself() -> None:
    """The defect of the one library that had this: its reference kept the adapter on. Here weight 1 is the base."""
    base, _ = two_models()
    plain_V = last_logits(base, torch.tensor([20, 21])).log_softmax(-1)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    adapted_V = last_logits(model, torch.tensor([20, 21]))
    assert (adapted_V.log_softmax(-1) - plain_V).abs().max() > 1e-3
    anchors = AnchorSet(Needs(feedback="wins", anchors=(Frozen("ref"),)), model)

    @contextmanager
    def ref() -> Iterator[nn.Module]:
        with anchors.model("ref") as module:
            yield module

    mask_NT = torch.ones(1, 2, dtype=torch.bool)
    mixed_NV = GeometricMixture(ref, 1.0, mask_NT)(torch.tensor([[20, 21]]), adapted_V[None])
    torch.testing.assert_close(mixed_NV[0], plain_V, rtol=0, atol=1e-5)
    torch.testing.assert_close(last_logits(model, torch.tensor([20, 21])), adapted_V, rtol=0, atol=0)


METHODS = [
    {"name": "nash_md", "tau": 0.05, "mix": 0.25},
    {"name": "nash_md", "tau": 0.05, "mix": 0.25, "kl": "sequence"},
    {"name": "ipo_md", "tau": 0.5, "mix": 0.25},
]


def sharp(logits_A: Tensor) -> Any:
    """The symbols carry all the mass: a policy gradient, unlike a margin, sees the normaliser of the vocabulary."""
    model = symbol_model(logits_A=logits_A)
    with torch.no_grad():
        state_H = model.model(torch.tensor([[3]])).last_hidden_state[0, -1]
        model.lm_head.weight[:4] = -60.0 * state_H / state_H.square().sum()
    return model


def train(method: dict[str, Any], folder: str, **changes: Any) -> Tensor:
    game = cyclic_game(tau=method["tau"])
    model = sharp(START)
    args = AlignmentArguments(
        **{
            "output_dir": folder,
            "max_steps": 8,
            "per_device_train_batch_size": 1,
            "learning_rate": 0.075,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "max_new_tokens": 1,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            **changes,
        }
    )
    PreferenceTrainer(
        model=model,
        ref_model=sharp(game.ref_XA[0].log()),
        args=args,
        train_dataset=question_rows(args.per_device_train_batch_size),
        processing_class=symbol_tokenizer(),
        oracle=MatrixOracle(game.prefs_XAA, responses=SYMBOLS),
        method=method,
    ).train()
    return symbol_policy(model)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
def test_the_language_model_walks_with_the_matrix(method: dict[str, Any], tmp_path: object) -> None:
    """Eight iterations with all three responses enumerated equal the tabular run (float32)."""
    run = run_tabular(
        build_method(method),
        cyclic_game(tau=method["tau"]),
        lr=0.075,
        iterations=8,
        init_XA=START.double().softmax(-1)[None],
    )
    walked_XA = train(method, str(tmp_path), engine="enumerate", responses=list(SYMBOLS))
    torch.testing.assert_close(walked_XA, run.policy_XA, rtol=0, atol=2e-6)
    assert (run.policy_XA - START.double().softmax(-1)).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[::2], ids=lambda method: method["name"])
def test_samples_go_the_same_way(method: dict[str, Any], tmp_path: object) -> None:
    """Forty steps on 256 sampled prompts: within 0.05 of the exact path in every probability."""
    run = run_tabular(
        build_method(method),
        cyclic_game(tau=method["tau"]),
        lr=0.075,
        iterations=40,
        init_XA=START.double().softmax(-1)[None],
    )
    changes = {"max_steps": 40, "per_device_train_batch_size": 256, "num_completions": 4}
    torch.testing.assert_close(train(method, str(tmp_path), **changes), run.policy_XA, rtol=0, atol=0.05)
