"""``alignment reward`` with ``mixture``: annotators are divided into groups, and each group gets a reward model.

Beside the groups' models, one for everybody is trained as long. Held-out rows decide between the two; all are saved.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from alignment.config.fitting import RewardRecipe
from alignment.data import prompt_text
from alignment.errors import UserError
from alignment.files import write_json
from alignment.folders import RunFiles, RunResult
from alignment.rewards import Mixture, Separation, agreement, compare_held_out, fit_mixture, fit_single
from alignment.rewards.pairs import TextPair
from alignment.rewards.separation import accuracy
from alignment.rewards.text import TextBradleyTerry

_SHOWN_ANNOTATORS = 12


def run_mixture(
    recipe: RewardRecipe,
    make: Callable[[TrainerCallback], TextBradleyTerry],
    train_pairs: Sequence[TextPair],
    eval_pairs: Sequence[TextPair],
    console: Console,
) -> RunResult:
    """Find the groups, train the models, compare them on held-out rows.

    Args:
        recipe: with ``mixture``.
        make: a callback for its log lines -> a reward model before training.
        train_pairs: each with its annotator.
        eval_pairs: the same.
        console: where to print.

    Returns:
        Held-out accuracy before and after; ``final`` holds ``group_0``, ... and ``single``.

    Raises:
        UserError: if a row has no annotator, or an annotator two groups.
    """
    spec = recipe.mixture
    assert spec is not None
    folder = Path(recipe.output_dir)
    annotators, held_out = _annotators(train_pairs), _annotators(eval_pairs)
    known = _known_groups([*train_pairs, *eval_pairs])
    made = iter(range(spec.groups * spec.num_starts))

    def make_group() -> TextBradleyTerry:
        start, group = divmod(next(made), spec.groups)
        return make(RunFiles(folder, recipe.to_yaml(), start=start, group=group))

    def report(start: int, iteration: int, log_likelihood: float) -> None:
        line = f"start {start}, iteration {iteration}: log-likelihood {log_likelihood:.2f} nats"
        console.print(line)

    single = make(RunFiles(folder, recipe.to_yaml()))
    start_accuracy = accuracy(single.margins(eval_pairs))
    mixture = fit_mixture(
        train_pairs,
        annotators,
        make_group,
        num_groups=spec.groups,
        max_iterations=spec.max_iterations,
        num_starts=spec.num_starts,
        seed=recipe.seed,
        report=report,
    )
    fit_single(single, train_pairs, num_fits=mixture.num_iterations)
    verdict = compare_held_out(
        mixture, single, eval_pairs, held_out, [prompt_text(pair.row) for pair in eval_pairs], seed=recipe.seed
    )
    models = folder / "final"
    names = [f"group_{group}" for group in range(spec.groups)]
    for name, component in zip([*names, "single"], [*mixture.components, single], strict=True):
        assert isinstance(component, TextBradleyTerry)
        component.save(models / name)
    use = names if verdict.is_separable else ["single"]
    after = {"accuracy": verdict.accuracy, "accuracy of one reward": verdict.single_accuracy}
    before = dict.fromkeys(after, start_accuracy)
    _write(folder, mixture, verdict, known, use, before, after)
    _print(mixture, verdict, known, annotators, use, console)
    console.print(f"models: {models}")
    return RunResult(folder=folder, model_folder=models, before=before, after=after)


def _annotators(pairs: Sequence[TextPair]) -> list[str]:
    names = []
    for pair in pairs:
        if pair.row.annotator is None:
            raise UserError(
                f"{pair.row.source}: expected an annotator in every row with mixture, found none; map the column with "
                "columns: {annotator: ...}, or take mixture out"
            )
        names.append(pair.row.annotator)
    return names


def _known_groups(pairs: Sequence[TextPair]) -> dict[str, str]:
    groups: dict[str, str] = {}
    for pair in pairs:
        annotator, group = pair.row.annotator, pair.row.group
        if annotator is None or group is None:
            continue
        if groups.setdefault(annotator, group) != group:
            raise UserError(
                f"{pair.row.source}: expected one group for each annotator, found {group!r} for {annotator!r}, who was "
                f"in {groups[annotator]!r}; repair the column"
            )
    return groups


def _write(
    folder: Path,
    mixture: Mixture[TextPair],
    verdict: Separation,
    known: dict[str, str],
    use: list[str],
    before: dict[str, float],
    after: dict[str, float],
) -> None:
    summary = {
        "before": before,
        "after": after,
        "use": use,
        "assignment": dict(mixture.assignment),
        "sizes": mixture.sizes,
        "log_likelihoods": mixture.log_likelihoods,
        "start_log_likelihoods": mixture.start_log_likelihoods,
        "is_converged": mixture.is_converged,
        "num_rejected": mixture.num_rejected,
        "empty": mixture.empty,
        "is_separable": verdict.is_separable,
        "annotator_p_value": verdict.annotator_p_value,
        "prompt_p_value": verdict.prompt_p_value,
        "gains": dict(verdict.gains),
        **({"agreement": agreement(mixture.assignment, known)} if known else {}),
    }
    write_json(folder / "summary.json", summary)


def _print(
    mixture: Mixture[TextPair],
    verdict: Separation,
    known: dict[str, str],
    annotators: Sequence[str],
    use: list[str],
    console: Console,
) -> None:
    table = Table("group", "annotators", "pairs", "who", box=None, pad_edge=False)
    for group, size in enumerate(mixture.sizes):
        members = mixture.members(group)
        who = ", ".join(members[:_SHOWN_ANNOTATORS]) + (", ..." if size > _SHOWN_ANNOTATORS else "")
        table.add_row(f"group_{group}", str(size), str(sum(name in members for name in annotators)), who)
    console.print(table)
    end = (
        "the assignment settled" if mixture.is_converged else "the iterations were spent before the assignment settled"
    )
    lines = [f"{mixture.num_iterations} iterations, {end}; {mixture.num_rejected} M steps taken back"]
    if mixture.empty:
        lines.append(f"groups that were empty at some iteration: {', '.join(map(str, mixture.empty))}")
    if known:
        lines.append(f"agreement with the groups in the rows: {agreement(mixture.assignment, known):.4f}")
    lines += [verdict.summary(), f"use: {', '.join(use)}"]
    for line in lines:
        console.print(line)
