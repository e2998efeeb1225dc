"""Look at a recipe before it costs anything: its data, its tokens, its numbers. No weights are loaded.

Every check looks for a fault that trains without an error and shows in the result only, if at all.
"""

from dataclasses import dataclass

from alignment.batches import check_feedback, rows_to_encode
from alignment.boundaries import Boundary, boundaries_of
from alignment.config import Recipe, build_arguments
from alignment.doctor.findings import EndOfExamination, Finding, attempt
from alignment.doctor.models import check_adapter, check_reference
from alignment.doctor.numbers import check_learning_rate, check_numbers, check_optimizer
from alignment.doctor.sampling import check_engine_and_oracle, draws_answers
from alignment.doctor.tokens import (
    check_bos,
    check_eos,
    check_merges,
    check_room,
    check_template,
    check_truncation,
)
from alignment.models import load_tokenizer
from alignment.preparation import PreparedData, encode_as_asked, prepare_data, shared_prompts
from alignment.stages import describe_foreign_samples
from alignment.textgame import is_address

__all__ = ["Examination", "Finding", "examine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All findings in the order of the checks, and the boundaries of a few rows."""

    findings: tuple[Finding, ...]
    boundaries: tuple[Boundary, ...]

    @property
    def is_sound(self) -> bool:
        """Whether no check failed."""
        return all(finding.verdict != "fail" for finding in self.findings)


def examine(recipe: Recipe, *, num_rows: int = 2) -> Examination:
    """Run every check on a recipe.

    Args:
        recipe: a checked recipe; its data are read, its tokenizer and configuration loaded, its weights are not.
        num_rows: rows whose token boundary is shown.

    Returns:
        The findings. A fault that hides later ones (unreadable data, a broken template) ends the list.
    """
    findings: list[Finding] = []
    boundaries: tuple[Boundary, ...] = ()
    try:
        args, method = build_arguments(recipe), recipe.build_method()
        findings += check_numbers(recipe)
        findings.append(check_optimizer(args, method.needs))
        findings += check_engine_and_oracle(recipe)
        if draws_answers(recipe):
            foreign = describe_foreign_samples(method.needs, args.sampling())
            findings += [Finding("samples", "note", text) for text in foreign]
        said: list[str] = []
        data = attempt("data", lambda: prepare_data(recipe.data, seed=recipe.seed, announce=said.append))
        findings += [Finding("data", "ok", line.removeprefix("data: ")) for line in said]
        findings.append(_check_held_out(data, recipe))
        tokenizer = attempt("tokenizer", lambda: load_tokenizer(recipe.policy, data.train))
        rows = rows_to_encode(data.train, method.needs, args)
        encoded = attempt("encoding", lambda: encode_as_asked(rows, tokenizer, recipe.data)[0])
        findings.append(Finding("encoding", "ok", encoded.summary()))
        # Prompts alone get their answers, and what is said of these, in a round.
        if recipe.data.prompts is None:
            attempt("labels", lambda: check_feedback(encoded.rows, method.needs))
        boundaries = tuple(boundaries_of(encoded.rows[:num_rows], tokenizer))
        findings.append(check_template(recipe.policy, encoded.rows, tokenizer))
        findings.append(check_bos(encoded.rows, tokenizer))
        findings.append(check_eos(recipe.policy, encoded.rows, tokenizer))
        findings.append(check_merges(rows, tokenizer))
        findings += check_truncation(recipe, encoded, len(rows))
        if recipe.sampling.engine != "enumerate":
            asked = rows_to_encode(data.evaluation, method.needs, args)
            held_out = (
                attempt("encoding", lambda: encode_as_asked(asked, tokenizer, recipe.data)[0].rows) if asked else ()
            )
            # The KL and the win rate may ask for the same room.
            findings += dict.fromkeys(check_room(recipe, args, encoded.rows, held_out))
        findings.append(check_learning_rate(recipe, args, len(encoded.rows)))
        findings.append(check_reference(recipe, tokenizer))
        if recipe.policy.lora is not None:
            findings.append(check_adapter(recipe.policy, recipe.policy.lora, tokenizer))
    except EndOfExamination as end:
        findings.append(end.finding)
    return Examination(findings=tuple(findings), boundaries=boundaries)


def _check_held_out(data: PreparedData, recipe: Recipe) -> Finding:
    if recipe.data.evaluation is not None and is_address(recipe.data.evaluation.path[0]):
        return Finding("held-out rows", "ok", "none: the text game is played and measured on all of its questions")
    shared = shared_prompts(data.train, data.evaluation)
    if shared:
        return Finding(
            "held-out rows",
            "fail",
            f"{len(shared):,} training rows have the prompt of a held-out row up to case and white space, first "
            f"{shared[0]}: metrics on them are those of memory; set data.duplicates={{remove: exact}} or "
            "data.decontaminate={}",
        )
    if not data.evaluation:
        return Finding("held-out rows", "note", "none: nothing will say whether training helps; set data.eval_fraction")
    return Finding("held-out rows", "ok", f"{len(data.evaluation):,}, no prompt of theirs is trained on")
