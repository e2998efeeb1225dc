"""What a run does: steps, tokens, questions to the oracle, money, floating-point operations."""

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

from alignment.budgets import questions_of_a_rollout
from alignment.costs import forward_flops
from alignment.oracles.build import leaves_of
from alignment.oracles.judge_spec import JudgeSpec
from alignment.planning.run import Run
from alignment.rounds import questions_of_a_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Sums over a whole run, all rounds. ``None`` where they hang on data that are not here.

    Attributes:
        verdicts: that stand in the data.
        optimizer_steps: of all fits.
        trained_tokens: that pass through the model with a gradient, prompts among them.
        scored_tokens: of them, those of responses.
        sampled_tokens: at most, of all answers that are trained on or met.
        questions: to the oracle: pairs of answers; a panel's members count one by one.
        requests: to judges behind an API: in both orders, where both are asked.
        money: that they cost at most, in the currency of their prices; 0 where no judge names any.
        training_flops: operations of all devices together, of forward and backward passes.
        frozen_flops: of log-probs of frozen policies.
        sampling_flops: of drawn answers. What an oracle's models compute is not among them.
    """

    verdicts: int | None = None
    optimizer_steps: int | None = None
    trained_tokens: int | None = None
    scored_tokens: int | None = None
    sampled_tokens: int | None = None
    questions: int | None = None
    requests: int | None = None
    money: float | None = None
    training_flops: float | None = None
    frozen_flops: float | None = None
    sampling_flops: float | None = None

    def __add__(self, other: "Work") -> "Work":
        """Of two players."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return Work(
            **{
                name: None if value is None or theirs[name] is None else value + theirs[name]
                for name, value in mine.items()
            }
        )

    @property
    def flops(self) -> float | None:
        """Of the whole run."""
        parts = (self.training_flops, self.frozen_flops, self.sampling_flops)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


def work_of(run: Run) -> Work:
    """Reckon it for one player."""
    steps, prompts = _optimizer_steps(run), _prompts_answered(run)
    reads = not (run.needs.samples_in_batches or run.recipe.samples_in_rounds)
    work = Work(verdicts=run.lengths.verdicts if reads else 0)
    if steps is not None:
        work = replace(work, optimizer_steps=steps, **_training(run, steps))
    if prompts is not None:
        work = replace(work, **_sampling(run, prompts), **_asking(run, prompts))
    return work


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


# What they cost ------------------------------------------------------------------------------------------------------


def _training(run: Run, steps: int) -> dict[str, Any]:
    batch, lengths, args = run.batch(), run.lengths, run.args
    rows = _rows_seen(run, steps)
    tokens, scored = rows * (lengths.shared if batch.is_shared else lengths.dense), rows * lengths.scored
    forward = forward_flops(run.outline.shape, tokens=tokens, scored=scored, width=batch.width)
    # Backward: gradients of activations, and of weights where those are not frozen.
    times = 2 + int(not run.outline.is_adapter) + int(run.is_checkpointed)
    share = 1.0 if run.needs.stages > 1 or not run.needs.samples_in_batches else 1 / args.steps_per_rollout
    of_a_fit = _rows_of_a_fit(run)
    if run.recipe.anchors.store and of_a_fit is not None:
        # Each row once a fit, however often it is seen.
        share = _num_fits(run) * of_a_fit / rows
    return {
        "trained_tokens": round(tokens),
        "scored_tokens": round(scored),
        "training_flops": times * forward,
        "frozen_flops": run.copies().forwards * forward * share,
    }


def _sampling(run: Run, prompts: int) -> dict[str, Any]:
    sampling = run.recipe.sampling
    drawn = prompts * (sampling.num_completions + run.rival_answers) if run.draws else 0
    # A mixture asks two models at every token.
    models = 2 if "mixture" in (run.needs.sampler, run.needs.opponent) else 1
    new, length = sampling.max_new_tokens, run.lengths.prompt + sampling.max_new_tokens
    flops = forward_flops(run.outline.shape, tokens=drawn * length, scored=drawn * new, width=length)
    return {"sampled_tokens": drawn * new, "sampling_flops": models * flops}


def _asking(run: Run, prompts: int) -> dict[str, Any]:
    recipe = run.recipe
    if not prompts or recipe.oracle is None:
        return {"questions": 0, "requests": 0, "money": 0.0}
    if recipe.samples_in_rounds:
        each = questions_of_a_prompt(recipe.schedule.pairs, recipe.sampling.num_completions)
    elif recipe.sampling.responses is not None:
        each = math.comb(len(recipe.sampling.responses), 2)
    else:
        each = questions_of_a_rollout(recipe, run.needs)
    questions = prompts * each
    # Members of a panel are counted already, those of a mixture are all asked.
    of_a_judge = questions // len(recipe.oracle["members"]) if recipe.oracle["kind"] == "panel" else questions
    judges = [leaf for leaf in leaves_of(recipe.oracle) if isinstance(leaf, JudgeSpec)]
    requests = [of_a_judge * (2 if judge.symmetrize else 1) for judge in judges]
    money = sum(count * _price(run, judge) for count, judge in zip(requests, judges, strict=True))
    return {"questions": questions, "requests": sum(requests), "money": float(money)}


def _price(run: Run, judge: JudgeSpec) -> float:
    """Of a request: the template, whose bytes are more than its tokens, a prompt, two answers, the longest reply."""
    if judge.prices is None:
        return 0.0
    read = len(judge.template_text().encode()) + run.lengths.prompt + 2 * run.recipe.sampling.max_new_tokens
    return (read * judge.prices.prompt + judge.reply_tokens * judge.prices.completion) / 1e6
