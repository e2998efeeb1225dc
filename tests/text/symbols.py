"""A causal language model that emits one of A symbols: a tabular policy in the clothes of the text stack."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.data import Row, Turn
from alignment.games import PreferenceGame, cyclic

SYMBOLS = ("red", "green", "blue")
SPECIALS = ("<pad>", "<bos>", "<eos>", "question")


def symbol_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; the template sets the words of a conversation side by side."""
    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *SYMBOLS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    return fast


def symbol_model(*, logits_A: Tensor | None = None, seed: int = 0) -> LlamaForCausalLM:
    """A two-layer Llama over the symbols. With ``logits_A`` its head gives exactly these logits from a unit-norm state.

    The final norm is scaled to unit length; the head's rows are then multiples of the state after "question", so that
    a gradient step of size lr on the head is a gradient step of size lr on the logits.
    """
    config = LlamaConfig(
        vocab_size=len(SPECIALS) + len(SYMBOLS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        rms_norm_eps=1e-12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    # Only symbols are said: the game has no other action.
    model.generation_config.suppress_tokens = list(range(len(SPECIALS)))
    if logits_A is not None:
        with torch.no_grad():
            model.model.norm.weight.fill_(config.hidden_size**-0.5)
            state_H = model.model(torch.tensor([[SPECIALS.index("question")]])).last_hidden_state[0, -1]
            head_VH = torch.zeros_like(model.lm_head.weight)
            head_VH[len(SPECIALS) :] = logits_A.float()[:, None] * state_H / state_H.square().sum()
            model.lm_head.weight.copy_(head_VH)
        model.requires_grad_(False)
        model.lm_head.weight.requires_grad_(True)
    return model


def symbol_policy(model: LlamaForCausalLM) -> Tensor:
    """Probabilities [1, A] of the symbols after the prompt, among the symbols, float64."""
    with torch.no_grad():
        logits_V = model(torch.tensor([[SPECIALS.index("question")]])).logits[0, -1]
    return logits_V[len(SPECIALS) :].double().softmax(-1)[None]


def question_rows(count: int) -> tuple[Row, ...]:
    """The same prompt again and again."""
    return tuple(Row(prompt=(Turn("user", "question"),), source=f"questions:{i + 1}") for i in range(count))


def cyclic_game(*, tau: float) -> PreferenceGame:
    """0/1 rock-paper-scissors with the reference of invariant 6."""
    ref_XA = torch.tensor([[0.5, 0.0, -0.2]], dtype=torch.float64).softmax(-1)
    return cyclic(3, ref_XA=ref_XA, tau=tau)
