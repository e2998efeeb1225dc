"""What a run does: steps, tokens, questions to the oracle, money, floating-point operations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alignment.budgets import questions_of_a_rollout
from alignment.costs import forward_flops
from alignment.oracles.build import JudgeSpec, leaves_of
from alignment.planning.run import Run
from alignment.rounds import questions_of_a_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the oracle of a run is asked, at most.

    Attributes:
        questions: pairs of answers; a panel's members count one by one.
        requests: to judges behind an API: in both orders, where both are asked.
        money: that they cost, in the currency of their prices; ``None`` where no judge names any.
    """

    questions: int
    requests: int
    money: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Sums over a player's whole run, all rounds. ``None`` where they hang on data that are not here.

    Attributes:
        optimizer_steps: of all fits.
        trained_tokens: that pass through the model with a gradient, prompts among them.
        scored_tokens: of them, those of responses.
        sampled_tokens: at most, of all answers that are trained on or met.
        asked: of the oracle.
        flops: of training, of frozen policies, of sampling.
    """

    optimizer_steps: int | None
    trained_tokens: int | None
    scored_tokens: int | None
    sampled_tokens: int | None
    asked: Asked | None
    flops: Mapping[str, float] | None


def work_of(run: Run) -> Work:
    """Reckon it for one player; the others of the recipe do the same."""
    steps, drawn = _optimizer_steps(run), _prompts_answered(run)
    gradients = None if steps is None else _rows_seen(run, steps)
    is_shared, lengths = run.batch().is_shared, run.lengths
    tokens = None if gradients is None else gradients * (lengths.shared if is_shared else lengths.dense)
    scored = None if gradients is None else gradients * lengths.scored
    return Work(
        optimizer_steps=steps,
        trained_tokens=None if tokens is None else round(tokens),
        scored_tokens=None if scored is None else round(scored),
        sampled_tokens=None if drawn is None else drawn * _answers(run) * run.recipe.sampling.max_new_tokens,
        asked=None if drawn is None else _asked(run, drawn),
        flops=None if tokens is None or scored is None or drawn is None else _flops(run, tokens, scored, drawn),
    )


# Counts --------------------------------------------------------------------------------------------------------------


def _num_fits(run: Run) -> int:
    return (run.recipe.schedule.rounds if run.recipe.samples_in_rounds else 1) * run.needs.fits


def _rows_of_a_fit(run: Run) -> int | None:
    rows, schedule = run.lengths.rows, run.recipe.schedule
    if rows is None or not run.recipe.samples_in_rounds or schedule.prompts == "all":
        return rows
    return math.ceil(rows / schedule.rounds)


def _steps_of_an_epoch(run: Run, rows: int) -> int:
    args, processes = run.args, run.launch.processes
    if run.optimizer_steps > 1:
        return rows // _effective_batch(run) * run.optimizer_steps
    batches = math.ceil(rows / args.per_device_train_batch_size / processes)
    return math.ceil(batches / args.gradient_accumulation_steps)


def _effective_batch(run: Run) -> int:
    return run.args.per_device_train_batch_size * run.args.gradient_accumulation_steps * run.launch.processes


def _optimizer_steps(run: Run) -> int | None:
    """Of all fits."""
    rows = _rows_of_a_fit(run)
    if run.args.max_steps > 0:
        return _num_fits(run) * run.args.max_steps * run.optimizer_steps
    if rows is None:
        return None
    return _num_fits(run) * math.ceil(run.args.num_train_epochs * _steps_of_an_epoch(run, rows))


def _rows_seen(run: Run, steps: int) -> int:
    """Rows that all steps together take a gradient of: the last batch of an epoch may not be full."""
    rows, batch = _rows_of_a_fit(run), _effective_batch(run)
    of_a_fit = steps // _num_fits(run)
    if rows is None or run.optimizer_steps > 1:
        return steps * batch
    # Processes have as many micro-batches each; the first rows fill up.
    share = run.args.per_device_train_batch_size * run.launch.processes
    of_an_epoch = rows if run.launch.processes == 1 else math.ceil(rows / share) * share
    epochs, rest = divmod(of_a_fit, _steps_of_an_epoch(run, rows))
    return _num_fits(run) * (epochs * of_an_epoch + min(rest * batch, of_an_epoch))


def _prompts_answered(run: Run) -> int | None:
    """How often a prompt is answered: in rounds each one once a round, else each time that its batch is sampled."""
    if run.recipe.samples_in_rounds:
        rows, rounds = run.lengths.rows, run.recipe.schedule.rounds
        return None if rows is None else rows * (1 if run.recipe.schedule.prompts == "split" else rounds)
    if not run.needs.samples_in_batches:
        return 0
    steps = _optimizer_steps(run)
    # Each stage samples anew; the steps of a rollout share it.
    return None if steps is None else _rows_seen(run, steps) // run.args.steps_per_rollout


def _answers(run: Run) -> int:
    """Answers to a prompt that are drawn; enumerated ones are not."""
    sampling = run.recipe.sampling
    return 0 if sampling.engine == "enumerate" else sampling.num_completions + run.rival_answers


# The oracle ----------------------------------------------------------------------------------------------------------


def _asked(run: Run, prompts: int) -> Asked:
    recipe = run.recipe
    if not prompts or recipe.oracle is None:
        return Asked(questions=0, requests=0, money=None)
    if recipe.samples_in_rounds:
        each = questions_of_a_prompt(recipe.schedule.pairs, recipe.sampling.num_completions)
    elif recipe.sampling.responses:
        # Every pair of the responses.
        count = len(recipe.sampling.responses)
        each = count * (count - 1) // 2
    else:
        each = questions_of_a_rollout(recipe, run.needs)
    questions = prompts * each
    # Members of a panel are counted already, those of a mixture are all asked.
    of_a_leaf = questions // len(recipe.oracle["members"]) if recipe.oracle["kind"] == "panel" else questions
    requests, money = 0, None
    for leaf in leaves_of(recipe.oracle):
        if isinstance(leaf, JudgeSpec):
            asked = of_a_leaf * (2 if leaf.symmetrize else 1)
            requests += asked
            if leaf.prices is not None:
                money = (money or 0.0) + asked * _price(run, leaf)
    return Asked(questions=questions, requests=requests, money=money)


def _price(run: Run, judge: JudgeSpec) -> float:
    """Of a request: the template, whose bytes are more than its tokens, a prompt, two answers, the longest reply."""
    assert judge.prices is not None
    read = len(judge.template_text().encode()) + run.lengths.prompt + 2 * run.recipe.sampling.max_new_tokens
    return (read * judge.prices.prompt + judge.reply_tokens * judge.prices.completion) / 1e6


# Operations ----------------------------------------------------------------------------------------------------------


def _flops(run: Run, tokens: float, scored: float, prompts: int) -> dict[str, float]:
    """Of all devices together; the forwards of an oracle's models are not among them."""
    shape, batch, lengths = run.outline.shape, run.batch(), run.lengths
    forward = forward_flops(shape, tokens=tokens, scored=scored, width=batch.width)
    # Backward: gradients of activations, and of weights; those of frozen weights are not computed.
    times = 1 + (1 if run.outline.is_adapter else 2) + int(run.is_checkpointed)
    copies, frozen = run.copies().forwards, 0.0
    if copies and tokens:
        seen = _rows_seen(run, _optimizer_steps(run) or 0)
        share = 1.0
        if run.recipe.anchors.store and lengths.rows is not None:
            # Once for the rows of a round, in place of once for each time that they are seen.
            share = _num_fits(run) * (_rows_of_a_fit(run) or 0) / seen
        elif run.needs.samples_in_batches and run.needs.stages == 1:
            share = 1 / run.args.steps_per_rollout
        frozen = copies * forward * share
    length = lengths.prompt + run.recipe.sampling.max_new_tokens
    models = 2 if "mixture" in (run.needs.sampler, run.needs.opponent) else 1
    sequences = prompts * _answers(run) * models
    drawn = sequences * run.recipe.sampling.max_new_tokens
    sampling = forward_flops(shape, tokens=sequences * length, scored=drawn, width=length)
    return {"training": times * forward, "frozen policies": frozen, "sampling": sampling}
