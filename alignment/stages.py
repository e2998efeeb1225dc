"""The three functions that turn prompts into what a loss sees: ``rollout``, ``judge``, ``annotate``.

Shape letters: ``B`` prompts, ``G`` completions of a prompt, ``J`` opponent's completions, ``T`` tokens.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from alignment.anchors import AnchorSet
from alignment.data import Batch, prompt_text
from alignment.errors import UserError
from alignment.functional import group_wins
from alignment.logps import score
from alignment.oracles import PanelOracle, ask, preference_matrix
from alignment.policies import CausalLMPolicy
from alignment.seeds import seed_of
from alignment.types import (
    Completions,
    Feedback,
    LossInputs,
    Method,
    Needs,
    Oracle,
)

_MIXTURE = "mixture"
_OPPONENTS = {
    **{"none": None, "group": None, "fresh": "policy", "target": "target", "ref": "ref"},
    _MIXTURE: _MIXTURE,
}
"""Opponents that can be supplied -> the policy that answers for them; ``None`` where no further sample is needed."""

PolicyOf = Callable[[str], AbstractContextManager[nn.Module]]
"""Name of a policy ("policy", "ref", "target") -> a context in which the module acts as that policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        num_completions: G, responses per prompt that enter the loss.
        temperature: of those responses; infinite is uniform, for enumerated responses.
        max_new_tokens: longest response.
        engine: ``enumerate`` takes the responses that the rows carry, with their exact probabilities; any other
            samples.
        opponent_temperature: of the opponent's responses.
        opponent_completions: J, the opponent's responses per prompt.
        top_k: of both; ``None`` for all tokens.
    """

    num_completions: int
    temperature: float
    max_new_tokens: int
    engine: str
    opponent_temperature: float
    opponent_completions: int
    top_k: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What was sampled for a batch of prompts.

    Attributes:
        prompts: text of each prompt, for the oracle.
        completions: the responses that enter the loss.
        responses: their texts, B lists of G.
        opponents: texts of the opponent, B lists of J; ``None`` where it needs no samples of its own.
        weights_BG: probabilities of enumerated responses under the sampler; ``None`` for samples.
        opponent_weights_BG: probabilities of the same responses under the opponent, where enumerated.
    """

    prompts: tuple[str, ...]
    completions: Completions
    responses: list[list[str]]
    opponents: list[list[str]] | None = None
    weights_BG: Tensor | None = None
    opponent_weights_BG: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """What one gradient reads, all of it frozen: completions, feedback, anchors.

    Attributes:
        completions: the responses.
        feedback: of one oracle.
        weights_BG: probabilities of enumerated responses, or ``None``.
        anchors: log-probs [B, G] of every anchor that the loss reads.
        token_anchors: log-probs per token [B, G, T], where the loss reads them.
        row_weight_B: weight of each row.
        mismatched: each prompt with a completion of another one, where the loss reads their log-probs.
        mismatched_anchors: their log-probs [B] under every anchor.
        metrics: of what was sampled, [B] each.
    """

    completions: Completions
    feedback: Feedback
    weights_BG: Tensor | None
    anchors: Mapping[str, Tensor]
    token_anchors: Mapping[str, Tensor]
    row_weight_B: Tensor
    mismatched: Completions | None = None
    mismatched_anchors: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def check_needs(needs: Needs) -> None:
    """Refuse a method whose samples, opponents, oracles or anchors nobody supplies: it would train another loss.

    Raises:
        UserError: naming all of them.
    """
    if needs.text_gaps:
        raise UserError(
            f"the method needs {', '.join(needs.text_gaps)}, which language models cannot be given yet; it runs on "
            "exact games (`alignment game`, run_tabular)"
        )


def describe_foreign_samples(needs: Needs, sampling: Sampling) -> tuple[str, ...]:
    """A line for each of the two, responses and opponent, that is not drawn from the policy that the method is about.

    At another temperature, or from the likeliest tokens, another policy answers, and what the method reaches moves. For
    a method that holds for any sampler of full support only the opponent matters.
    """
    cut = "" if sampling.top_k is None else f" from the {sampling.top_k} likeliest tokens"

    def line(key: str, what: str, temperature: float) -> tuple[str, ...]:
        if temperature == 1.0 and not cut:
            return ()
        drawn = f"{key}: {what} at temperature {temperature:g}{cut}"
        return (f"{drawn} are not the policy's own, which the method is about (temperature 1, all tokens)",)

    is_on_policy = needs.sampler != "dataset" and not needs.full_support
    has_opponent = _OPPONENTS[needs.opponent] is not None
    return (
        *(line("sampling", "responses", sampling.temperature) if is_on_policy else ()),
        *(line("sampling.opponent", "answers", sampling.opponent_temperature) if has_opponent else ()),
    )


def rollout(
    batch: Batch,
    *,
    needs: Needs,
    sampling: Sampling,
    make_policy: Callable[[nn.Module, float], CausalLMPolicy],
    policy_of: PolicyOf,
    seeds: Sequence[int],
) -> Rollout:
    """Sample responses, and the opponent's where the method compares with one.

    Args:
        batch: prompts; with ``engine: enumerate`` also all their responses.
        needs: who samples, and who is the opponent.
        sampling: how.
        make_policy: module and temperature -> a policy that samples.
        policy_of: the modules behind the names.
        seeds: one for each prompt.
    """
    prompts = tuple(prompt_text(row) for row in batch.rows)
    sampler = _MIXTURE if needs.sampler == _MIXTURE else "policy"
    opponent = _OPPONENTS[needs.opponent]
    if sampling.engine == "enumerate":
        return Rollout(
            prompts=prompts,
            completions=batch.completions,
            responses=[list(row.responses) for row in batch.rows],
            weights_BG=probabilities(batch.completions, policy_of, sampler, sampling.temperature, mix=needs.mix),
            opponent_weights_BG=probabilities(
                batch.completions, policy_of, opponent, sampling.opponent_temperature, mix=needs.mix
            )
            if opponent
            else None,
        )
    bare = prompts_only(batch)

    def draw(name: str, purpose: str, temperature: float, num_completions: int) -> tuple[Completions, list[list[str]]]:
        with policy_of("policy" if name == _MIXTURE else name) as module:
            policy = make_policy(module, temperature)
            if name == _MIXTURE:
                policy = policy.mixed(partial(policy_of, "ref"), needs.mix)
            own = [seed_of(seed, purpose) for seed in seeds]
            answers = policy.sample_by_seeds(bare, num_completions=num_completions, seeds=own)
            return answers, policy.texts(answers)

    num_own = sampling.num_completions
    if opponent == sampler and sampling.opponent_temperature == sampling.temperature:
        # One distribution: drawn together, the answers cost one generation instead of two.
        drawn, texts = draw(sampler, "responses", sampling.temperature, num_own + sampling.opponent_completions)
        responses, opponents = ([group[part] for group in texts] for part in (slice(num_own), slice(num_own, None)))
        return Rollout(prompts=prompts, completions=drawn.first(num_own), responses=responses, opponents=opponents)
    completions, responses = draw(sampler, "responses", sampling.temperature, num_own)
    if not opponent:
        return Rollout(prompts=prompts, completions=completions, responses=responses)
    _, rivals = draw(opponent, "opponents", sampling.opponent_temperature, sampling.opponent_completions)
    return Rollout(prompts=prompts, completions=completions, responses=responses, opponents=rivals)


@torch.no_grad()
def probabilities(
    completions: Completions, policy_of: PolicyOf, name: str, temperature: float, *, mix: float = 0.0
) -> Tensor:
    """Probabilities of enumerated responses at a temperature, normalised over the set, [B, G].

    The mixture is that of the theory here, ``policy^(1 - mix) ref^mix`` over whole responses.
    """
    with policy_of("policy" if name == _MIXTURE else name) as module:
        logps_BG = score(module, completions).logps_BG
    if name == _MIXTURE:
        with policy_of("ref") as module:
            logps_BG = (1.0 - mix) * logps_BG + mix * score(module, completions).logps_BG
    logits_BG = torch.where(completions.valid_BG, logps_BG.double() / temperature, -torch.inf)
    return logits_BG.softmax(-1)


def prompts_only(batch: Batch) -> Completions:
    """The prompts of a batch, one empty completion each."""
    ids_B1T, mask_B1T = batch.prompt_ids_BT[:, None], batch.prompt_mask_BT[:, None]
    return Completions(
        input_ids_BGT=ids_B1T,
        attention_mask_BGT=mask_B1T,
        completion_mask_BGT=torch.zeros_like(mask_B1T),
        valid_BG=torch.ones_like(mask_B1T[..., 0]),
    )


def judge(rolled: Rollout, oracle: Oracle, needs: Needs) -> Feedback:
    """Ask the oracle what the method reads: preferences inside the group, or wins against the opponent.

    Returns:
        Feedback of one oracle (K = 1), or of each member of a panel, float64 on the CPU.
    """
    if not isinstance(oracle, PanelOracle):
        return _judge_one(rolled, oracle, needs)
    answers = [_judge_one(rolled, member, needs) for member in oracle.members]
    wins = [answer.wins_KBG for answer in answers if answer.wins_KBG is not None]
    prefs = [answer.prefs_KBGG for answer in answers if answer.prefs_KBGG is not None]
    return Feedback(wins_KBG=torch.cat(wins) if wins else None, prefs_KBGG=torch.cat(prefs) if prefs else None)


def _judge_one(rolled: Rollout, oracle: Oracle, needs: Needs) -> Feedback:
    if needs.feedback == "wins" and rolled.opponents is not None:
        return Feedback(wins_KBG=_wins_against(oracle, rolled.prompts, rolled.responses, rolled.opponents)[None])
    prefs_BGG = preference_matrix(oracle, rolled.prompts, rolled.responses)
    if needs.feedback != "wins":
        return Feedback(prefs_KBGG=prefs_BGG[None])
    if rolled.opponent_weights_BG is not None:
        wins_BG = torch.einsum("bij,bj->bi", prefs_BGG, rolled.opponent_weights_BG.cpu())
    else:
        weights_BG = None if rolled.weights_BG is None else rolled.weights_BG.cpu()
        wins_BG = group_wins(prefs_BGG, rolled.completions.valid_BG.cpu(), weights_BG)
    return Feedback(wins_KBG=wins_BG[None])


def annotate_stored(batch: Batch, completions: Completions, feedback: Feedback) -> Annotated:
    """A batch of a data set whose rows carry the log-probs of every anchor."""
    return Annotated(
        completions=completions,
        feedback=feedback,
        weights_BG=None,
        anchors=batch.anchors,
        token_anchors={},
        row_weight_B=batch.row_weight_B,
        mismatched=batch.mismatched,
        mismatched_anchors=batch.mismatched_anchors,
    )


def sample_metrics(completions: Completions, responses: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """What can go wrong with samples without an error, as shares [B], float32.

    ``empty_responses``: responses without text: the model ended at once, or said special tokens only; the oracle sees
    an empty text, and the end token is the completion. ``identical_groups``: 1 where two or more responses are all the
    same tokens: a loss of pairs learns nothing from such a prompt.
    """
    tokens_BGT = torch.where(completions.completion_mask_BGT, completions.input_ids_BGT, -1)
    same_BG = (tokens_BGT == tokens_BGT[:, :1]).all(-1) | ~completions.valid_BG
    is_alike_B = same_BG.all(-1) & (completions.valid_BG.sum(-1) > 1)
    empty = [sum(not text for text in group) / len(group) for group in responses]
    return {
        "empty_responses": torch.tensor(empty, device=is_alike_B.device),
        "identical_groups": is_alike_B.float(),
    }


def group_wins_of_pairs(completions: Completions, feedback: Feedback) -> tuple[Completions, Feedback]:
    """Win rates inside each group from whichever of its pairs were compared; what met nobody leaves the group."""
    assert feedback.prefs_KBGG is not None
    asked_KBGG = ~feedback.prefs_KBGG.isnan()
    asked_KBGG = asked_KBGG & ~torch.eye(asked_KBGG.shape[-1], dtype=torch.bool, device=asked_KBGG.device)
    num_KBG = asked_KBGG.sum(-1)
    wins_KBG = torch.where(asked_KBGG, feedback.prefs_KBGG, 0.0).sum(-1) / num_KBG
    return replace(completions, valid_BG=completions.valid_BG & (num_KBG[0] > 0)), Feedback(wins_KBG=wins_KBG)


def _wins_against(
    oracle: Oracle, prompts: Sequence[str], responses: Sequence[Sequence[str]], opponents: Sequence[Sequence[str]]
) -> Tensor:
    """Mean probability [B, G] that a response beats the opponent's; a response meets all of its prompt's opponents."""
    questions = [
        (prompt, response, rival)
        for prompt, group, rivals in zip(prompts, responses, opponents, strict=True)
        for response in group
        for rival in rivals
    ]
    left_right = list(zip(*questions, strict=True))
    answers_N = ask(oracle, *left_right)
    return answers_N.reshape(len(prompts), len(responses[0]), len(opponents[0])).mean(-1)


def annotate(
    completions: Completions,
    feedback: Feedback,
    anchors: AnchorSet,
    needs: Needs,
    *,
    weights_BG: Tensor | None,
    row_weight_B: Tensor,
    mismatched: Completions | None = None,
    without: Collection[str] = (),
) -> Annotated:
    """Add the anchors' log-probs, fresh, but for those that come from elsewhere."""
    scores = anchors.score(completions, without=without)
    device = completions.input_ids_BGT.device
    return Annotated(
        completions=completions,
        feedback=feedback.to(device),
        weights_BG=None if weights_BG is None else weights_BG.to(device),
        anchors={name: scored.logps_BG for name, scored in scores.items()},
        token_anchors={name: scored.token_logps_BGT for name, scored in scores.items()} if needs.per_token else {},
        row_weight_B=row_weight_B.to(device),
        mismatched=mismatched,
        mismatched_anchors={}
        if mismatched is None
        else {name: scored.logps_BG[:, 0] for name, scored in anchors.score(mismatched).items()},
    )


@torch.no_grad()
def prompt_weights(annotated: Annotated, method: Method) -> Tensor:
    """What each prompt counts for, [B]; it depends on feedback and masks only, so zeros stand for log-probs."""
    completions, names = annotated.completions, method.needs.anchor_columns()
    zeros_BG = torch.zeros(completions.valid_BG.shape, device=completions.valid_BG.device)
    zeros_BGT = torch.zeros_like(completions.completion_mask_BGT, dtype=zeros_BG.dtype)
    x = LossInputs(
        logps_BG=zeros_BG,
        lengths_BG=completions.lengths_BG,
        valid_BG=completions.valid_BG,
        feedback=annotated.feedback,
        weights_BG=annotated.weights_BG,
        anchors=dict.fromkeys(names, zeros_BG),
        token_logps_BGT=zeros_BGT,
        token_mask_BGT=completions.completion_mask_BGT,
        token_anchors=dict.fromkeys(names, zeros_BGT),
        token_excess_BGT=zeros_BGT if method.needs.confidence else None,
        mismatched_logps_B=zeros_BG[:, 0],
        mismatched_anchors=dict.fromkeys(names, zeros_BG[:, 0]),
    )
    return method.loss(x).weight_B * annotated.row_weight_B


@torch.no_grad()
def kl_to_ref(
    batch: Batch,
    *,
    sampling: Sampling,
    make_policy: Callable[[nn.Module], CausalLMPolicy],
    policy_of: PolicyOf,
    seeds: Sequence[int],
) -> Tensor:
    """KL(pi || ref) of each prompt [B], in nats: exact where enumerated; else an unbiased estimate from one sample.

    Of the first ``max_new_tokens`` tokens of an answer. A token counts ``r - 1 - log r`` with r = ref/pi: its mean
    under pi is the token's KL, and it is never negative.

    Args:
        batch: of prompts.
        sampling: how responses are drawn.
        make_policy: who answers for a module, at temperature 1 and from all tokens.
        policy_of: modules of "policy" and "ref".
        seeds: of each prompt's sample.
    """
    if sampling.engine == "enumerate":
        policy_BG, ref_BG = (probabilities(batch.completions, policy_of, name, 1.0) for name in ("policy", "ref"))
        return (torch.xlogy(policy_BG, policy_BG) - torch.xlogy(policy_BG, ref_BG)).sum(-1).float()
    with policy_of("policy") as module:
        answers = make_policy(module).sample_by_seeds(prompts_only(batch), num_completions=1, seeds=seeds)
        logps_BGT = score(module, answers).token_logps_BGT
    with policy_of("ref") as module:
        log_r_BGT = score(module, answers).token_logps_BGT - logps_BGT
    return (torch.expm1(log_r_BGT) - log_r_BGT).sum((1, 2))
