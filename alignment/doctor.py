"""Look at a recipe before it costs anything: its data, its tokens, its numbers. No weights are loaded.

Every check looks for a fault that trains without an error and shows in the result only, if at all.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    SchedulerType,
)
from transformers.training_args import OptimizerNames

from alignment.annotator import KL_LENGTH, prompts_of_kl
from alignment.arguments import AlignmentArguments
from alignment.batches import WIN_RATE_LENGTH, check_context, check_feedback, num_positions, rows_to_encode
from alignment.boundaries import Boundary, boundaries_of
from alignment.config import LoRASpec, PolicySpec, Recipe, SamplingSpec, build_arguments
from alignment.data import (
    RAW_TEXT,
    EncodedRow,
    EncodeResult,
    merged_boundaries,
    stop_token_ids,
)
from alignment.errors import UserError
from alignment.generation import ServerOptions, VLLMOptions, check_engine, read_options
from alignment.generation.http import read_key
from alignment.methods._card import Options
from alignment.models import load_tokenizer, lora_config
from alignment.optimizer_options import check_optimizer
from alignment.oracles import check_keys, check_models, oracle_name
from alignment.preparation import PreparedData, encode_as_asked, prepare_data, shared_prompts
from alignment.stages import describe_foreign_samples
from alignment.textgame import is_address, resolve_model
from alignment.tiny import tiny_model
from alignment.types import Needs
from alignment.weights import add_adapter

Verdict = Literal["ok", "note", "fail"]

# Shares of rows or responses from which a fault is one of the recipe and not of single rows.
_MANY, _SOME = 0.5, 0.01
# How far outside what a paper used a number is called far outside.
_FAR = 10.0
# A LoRA adapter is trained with about ten times the rate of all weights.
_LORA_FACTOR = 10.0
# Rates are compared at this batch, by the square-root rule of Adam (2205.10287).
_USUAL_BATCH = 64
_NOT_JUDGED = "not judged: no paper trains a model as small as this one"
_ROWS_OF_BOUNDARY_CHECK = 512


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: ``ok``, ``note`` (look at it) or ``fail`` (do not train), and a sentence."""

    check: str
    verdict: Verdict
    text: str


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
        findings += _check_numbers(recipe)
        findings.append(_check_optimizer(args, method.needs))
        findings += _check_engine_and_oracle(recipe)
        if _samples(recipe):
            findings += [
                Finding("samples", "note", text) for text in describe_foreign_samples(method.needs, args.sampling())
            ]
        said: list[str] = []
        data = _attempt("data", lambda: prepare_data(recipe.data, seed=recipe.seed, announce=said.append))
        findings += [Finding("data", "ok", line.removeprefix("data: ")) for line in said]
        findings.append(_check_held_out(data, recipe))
        tokenizer = _attempt("tokenizer", lambda: load_tokenizer(recipe.policy, data.train))
        rows = rows_to_encode(data.train, method.needs, args)
        encoded = _attempt("encoding", lambda: encode_as_asked(rows, tokenizer, recipe.data)[0])
        findings.append(Finding("encoding", "ok", encoded.summary()))
        # Prompts alone get their answers, and what is said of these, in a round.
        if recipe.data.prompts is None:
            _attempt("labels", lambda: check_feedback(encoded.rows, method.needs))
        boundaries = tuple(boundaries_of(encoded.rows[:num_rows], tokenizer))
        findings.append(_check_template(recipe.policy, encoded.rows, tokenizer))
        findings.append(_check_bos(encoded.rows, tokenizer))
        findings.append(_check_eos(recipe.policy, encoded.rows, tokenizer))
        findings.append(_check_merges(rows, tokenizer))
        findings += _check_truncation(recipe, encoded, len(rows))
        if recipe.sampling.engine != "enumerate":
            asked = rows_to_encode(data.evaluation, method.needs, args)
            held_out = (
                _attempt("encoding", lambda: encode_as_asked(asked, tokenizer, recipe.data)[0].rows) if asked else ()
            )
            findings += _check_room(recipe, args, encoded.rows, held_out)
        findings.append(_check_learning_rate(recipe, args, len(encoded.rows)))
        findings.append(_check_reference(recipe, tokenizer))
        if recipe.policy.lora is not None:
            findings.append(_check_adapter(recipe.policy, recipe.policy.lora, tokenizer))
    except _EndOfExamination as end:
        findings.append(end.finding)
    return Examination(findings=tuple(findings), boundaries=boundaries)


class _EndOfExamination(Exception):  # noqa: N818
    """Carries the finding after which nothing can be looked at."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


def _attempt(check: str, action: Any) -> Any:
    try:
        return action()
    except (UserError, FileNotFoundError) as error:
        raise _EndOfExamination(Finding(check, "fail", str(error))) from None


# Who answers, and who is asked


def _samples(recipe: Recipe) -> bool:
    return recipe.samples_in_rounds or recipe.build_method().needs.samples_in_batches


def _is_judged(recipe: Recipe) -> bool:
    return any(own.judge is not None for own in recipe.by_player().values())


def _check_engine_and_oracle(recipe: Recipe) -> Iterator[Finding]:
    """Packages, keys and models, without which training ends before its first step. Nobody is asked."""
    judge = None if recipe.evaluation is None else recipe.evaluation.oracle
    oracles = [spec for spec in (*(own.oracle for own in recipe.by_player().values()), judge) if spec is not None]
    checks: list[Callable[[], None]] = [partial(_check_sampler, recipe.sampling)] if _samples(recipe) else []
    checks += [partial(check, spec) for spec in oracles for check in (check_keys, check_models)]
    faults = dict.fromkeys(fault for check in checks if (fault := _fault(check)) is not None)
    for fault in faults:
        yield Finding("engine and oracle", "fail", fault)
    if checks and not faults:
        engine = [f"answers by '{recipe.sampling.engine}'"] if _samples(recipe) else []
        asked = [f"judged by {name}" for name in dict.fromkeys(map(oracle_name, oracles))]
        yield Finding("engine and oracle", "ok", ", ".join((*engine, *asked)))


def _check_sampler(sampling: SamplingSpec) -> None:
    check_engine(sampling.engine, sampling.engine_options)
    options = read_options(sampling.engine, sampling.engine_options)
    if isinstance(options, VLLMOptions | ServerOptions):
        read_key(options)


def _fault(check: Callable[[], None]) -> str | None:
    try:
        check()
    except UserError as error:
        return str(error)
    return None


# Data


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


# Tokens


def _check_template(policy: PolicySpec, rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> Finding:
    raw = [row.row.source for row in rows if row.row.prompt[0].role == RAW_TEXT]
    # A tiny model is new: it has learned no template.
    if raw and tokenizer.chat_template is not None and policy.tiny is None:
        return Finding(
            "template",
            "note",
            f"{len(raw):,} of {len(rows):,} prompts are raw text, first {raw[0]}, and never pass the model's chat "
            "template: prompt_role: user makes them turns of a conversation",
        )
    turns = len(rows) - len(raw)
    said = f"{turns:,} prompts are turns of a conversation, {len(raw):,} raw text, which no template touches"
    return Finding("template", "ok", said)


def _check_bos(rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> Finding:
    bos = tokenizer.bos_token_id
    if bos is None:
        return Finding("BOS", "ok", "the tokenizer has none")
    # In some families one token begins and ends a text.
    if bos == tokenizer.eos_token_id:
        return Finding("BOS", "ok", f"{tokenizer.bos_token} is the end-of-sequence token too; not looked for inside")
    again = [
        row.row.source for row in rows if bos in row.prompt_ids[1:] or any(bos in ids for ids in row.completion_ids)
    ]
    if again:
        return Finding(
            "BOS",
            "fail",
            f"{tokenizer.bos_token} stands inside {len(again):,} of {len(rows):,} rows, first {again[0]}: remove it "
            "from the data, or from the turns in tokenizer.chat_template",
        )
    at_start = sum(row.prompt_ids[0] == bos for row in rows)
    if not at_start:
        is_raw = all(row.row.prompt[0].role == RAW_TEXT for row in rows)
        why = "the tokenizer puts none before raw text" if is_raw else "neither tokenizer nor template puts it there"
        return Finding("BOS", "ok", f"no row begins with {tokenizer.bos_token}: {why}")
    return Finding("BOS", "ok", f"{tokenizer.bos_token} once at the start of {at_start:,} of {len(rows):,} rows")


def _check_eos(policy: PolicySpec, rows: Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase) -> Finding:
    stops = stop_token_ids(tokenizer)
    names = " or ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in stops)
    ends = {ids[-1] for row in rows if not row.num_truncated for ids in row.completion_ids}
    if not ends <= set(stops):
        return Finding("EOS", "fail", f"untruncated completions end in {sorted(ends - set(stops))}, not in {names}")
    sampled = _sampling_stops(policy)
    if ends and sampled and not ends & sampled:
        written = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(ends))
        return Finding(
            "EOS",
            "fail",
            f"completions end in {written}, and the model's generation_config stops at {sorted(sampled)} only: the "
            "model would end in a token after which sampling goes on; add the token to generation_config.eos_token_id",
        )
    total, cut = sum(len(row.completion_ids) for row in rows), sum(row.num_truncated for row in rows)
    if not total:
        return Finding("EOS", "ok", f"sampling stops at {names}")
    if cut > _MANY * total:
        return Finding(
            "EOS",
            "note",
            f"{cut:,} of {total:,} completions are cut and have no end: the policy learns little about stopping; raise "
            "data.max_completion_length",
        )
    others = f", {cut:,} are cut" if cut else ""
    return Finding("EOS", "ok", f"{names} ends {total - cut:,} of {total:,} completions{others}")


def _sampling_stops(policy: PolicySpec) -> set[int]:
    if policy.model is None:
        return set()
    try:
        stops = GenerationConfig.from_pretrained(resolve_model(policy.model)).eos_token_id
    except OSError:
        # A model without the file stops at the end-of-sequence token of its tokenizer.
        return set()
    return set() if stops is None else set(stops) if isinstance(stops, list) else {stops}


def _check_merges(rows: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> Finding:
    looked_at = rows[:_ROWS_OF_BOUNDARY_CHECK]
    total = sum(len(row.responses) for row in looked_at)
    if not total:
        return Finding("boundary", "ok", "the policy continues the prompt's own tokens")
    merged = merged_boundaries(looked_at, tokenizer)
    if not merged:
        return Finding("boundary", "ok", f"no token crosses it in {total:,} completions")
    text = (
        f"in {len(merged):,} of {total:,} completions the tokenizer would merge the prompt's end with the response's "
        f"start, first {merged[0]}; they are split at the prompt's end, where a sampler continues"
    )
    if len(merged) <= _SOME * total:
        return Finding("boundary", "note", text)
    advice = "move white space from the end of the prompt, or of the template's generation prompt, into the response"
    return Finding("boundary", "fail", f"{text}, and the model has not seen such tokens before: {advice}")


def _check_truncation(recipe: Recipe, encoded: EncodeResult, num_rows: int) -> Iterator[Finding]:
    lost = 1.0 - len(encoded.rows) / num_rows
    longest = recipe.data.max_prompt_length + recipe.data.max_completion_length
    faults = [*_truncation_faults(encoded, lost, longest, _positions(recipe.policy))]
    yield from faults
    if all(fault.verdict != "fail" for fault in faults):
        counts = f"{lost:.1%} of the rows left out, {len(encoded.truncated):,} completions cut"
        yield Finding("truncation", "ok", f"{counts}, {longest:,} tokens")


def _truncation_faults(encoded: EncodeResult, lost: float, longest: int, positions: int | None) -> Iterator[Finding]:
    if lost > _MANY:
        yield Finding(
            "truncation",
            "fail",
            f"{lost:.0%} of the rows are left out ({encoded.summary()}): raise data.max_prompt_length",
        )
    groups = [row for row in encoded.rows if row.num_truncated and len(row.completion_ids) > 1]
    equal = [row.row.source for row in groups if len(set(row.completion_ids)) == 1 < len(set(row.row.responses))]
    if equal:
        yield Finding(
            "truncation",
            "fail" if len(equal) > _SOME * len(encoded.rows) else "note",
            f"in {len(equal):,} of {len(encoded.rows):,} rows nothing of what differs between the responses is left, "
            f"first {equal[0]}: raise data.max_completion_length",
        )
    if positions is not None and longest > positions:
        yield Finding(
            "truncation",
            "fail",
            f"data.max_prompt_length + data.max_completion_length = {longest:,} tokens, the model has {positions:,} "
            "positions: lower them",
        )


def _check_room(
    recipe: Recipe, args: AlignmentArguments, rows: Sequence[EncodedRow], held_out: Sequence[EncodedRow]
) -> Iterator[Finding]:
    """For the answers that are learned from, and for those to held-out prompts: for the KL, and for a win rate."""
    needs, policy, samples = recipe.build_method().needs, recipe.policy, _samples(recipe)
    longest = args.longest_sample(needs)
    if samples:
        yield _room(policy, (*rows, *held_out), longest, "prompt", "max_new_tokens")
    else:
        is_base = policy.lora is not None and policy.ref_model is None
        asked = prompts_of_kl(held_out, needs, args, is_base=is_base)
        if asked:
            yield _room(policy, asked, longest, "held-out prompt", KL_LENGTH)
    if held_out and _is_judged(recipe) and not (samples and recipe.longest_answer <= longest):
        yield _room(policy, held_out, recipe.longest_answer, "held-out prompt", WIN_RATE_LENGTH)


def _room(policy: PolicySpec, rows: Sequence[EncodedRow], length: int, kind: str, named: str) -> Finding:
    limit = _positions(policy)
    try:
        check_context(rows, limit, max_new_tokens=length, named=named)
    except UserError as error:
        return Finding("room", "fail", str(error))
    longest = max((len(row.prompt_ids) for row in rows), default=0)
    room = "" if limit is None else f", in {limit:,} positions"
    return Finding("room", "ok", f"an answer of {length:,} tokens fits behind the longest {kind}, of {longest:,}{room}")


def _positions(policy: PolicySpec) -> int | None:
    if policy.tiny is not None:
        return policy.tiny.max_position_embeddings
    return num_positions(_config(policy.model))


def _config(name: str | None) -> Any:
    try:
        return AutoConfig.from_pretrained(None if name is None else resolve_model(name))
    except (OSError, ValueError) as error:
        raise _EndOfExamination(Finding("model", "fail", f"expected a model at '{name}' ({error})")) from None


# Numbers


def _check_numbers(recipe: Recipe) -> Iterator[Finding]:
    """Options of the method against what its paper used."""
    method = recipe.build_method()
    for spec in dataclasses.fields(cast(Any, method)):
        usual = spec.metadata.get("usual")
        value = recipe.method.get(spec.name)
        if usual is None or value is None:
            continue
        low, high = usual
        said = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        text = f"{spec.name} = {value:g}; usual {said}: {spec.metadata['paper']}"
        if low / _FAR <= value <= high * _FAR:
            yield Finding("options", "ok", text)
        elif _is_small(recipe.policy):
            yield Finding("options", "note", f"{text}; {_NOT_JUDGED}")
        else:
            yield Finding("options", "fail", f"{text}; that is more than {_FAR:g} times off")


def _is_small(policy: PolicySpec) -> bool:
    return policy.tiny is not None or is_address(policy.model)


def _check_optimizer(args: AlignmentArguments, needs: Needs) -> Finding:
    try:
        check_optimizer(args, iteration_steps=args.iteration_steps(needs))
    except UserError as error:
        return Finding("optimizer", "fail", str(error))
    names = OptimizerNames(args.optim).value, SchedulerType(args.lr_scheduler_type).value
    return Finding("optimizer", "ok", "{} with the schedule {}".format(*names))


def _check_learning_rate(recipe: Recipe, args: AlignmentArguments, num_rows: int) -> Finding:
    method = recipe.build_method()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * (num_rows // batch))
    plan = f"{args.learning_rate:g}, {steps:,} steps of {batch} prompts on {processes} process(es)"
    if steps == 0:
        return Finding("learning rate", "fail", f"{plan}: fewer rows than one batch; lower the batch")
    if _is_small(recipe.policy):
        return Finding("learning rate", "ok", f"{plan}; {_NOT_JUDGED}")
    if not isinstance(method, Options):
        return Finding("learning rate", "ok", f"{plan}; the method names no usual rate")
    low, high = method.usual_learning_rate
    if recipe.policy.lora is not None:
        low, high = low, high * _LORA_FACTOR
    effective = args.learning_rate * math.sqrt(_USUAL_BATCH / batch)
    said = f"{plan}; as {effective:.1e} at {_USUAL_BATCH} prompts, usual {low:g} to {high:g}"
    if low / _FAR <= effective <= high * _FAR:
        return Finding("learning rate", "ok", said)
    return Finding("learning rate", "fail", f"{said}: more than {_FAR:g} times off, set training.learning_rate")


# Reference


def _check_reference(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Finding:
    policy, reads = recipe.policy, recipe.build_method().needs.anchor_columns()
    if policy.ref_model is not None:
        return _check_other_model(recipe, policy.ref_model, tokenizer)
    if not reads:
        return Finding("reference", "ok", "the method reads none")
    if policy.model is not None and Path(policy.model, "adapter_config.json").exists():
        return Finding(
            "reference",
            "fail",
            f"{policy.model} is an adapter: with it switched off the reference would be its base, not the model that "
            "training starts from; merge it into its base and name the result",
        )
    where = "its log-probs are stored" if recipe.anchors.store else "a frozen copy"
    if policy.lora is not None and not recipe.anchors.store:
        where = "the adapter is switched off for it"
    return Finding("reference", "ok", f"the policy before training; {where}")


def _check_other_model(recipe: Recipe, name: str, tokenizer: PreTrainedTokenizerBase) -> Finding:
    if "ref" not in recipe.build_method().needs.anchor_columns():
        return Finding(
            "reference",
            "fail",
            f"policy.ref_model is '{name}', and the method '{recipe.method['name']}' reads no reference: it would be "
            "loaded for nothing; remove the key",
        )
    _config(name)
    try:
        other = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        return Finding("reference", "fail", f"expected a tokenizer at '{name}', to compare it ({error})")
    if other.get_vocab() != tokenizer.get_vocab():
        return Finding(
            "reference",
            "fail",
            f"the tokenizer of policy.ref_model '{name}' is not the policy's: its log-probs would be those of other "
            "texts; take a reference of the same family",
        )
    return Finding("reference", "ok", f"{name}, with the policy's own vocabulary")


def _check_adapter(policy: PolicySpec, lora: LoRASpec, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """An adapter on no module would leave policy and reference equal for ever."""
    with torch.device("meta"):
        if policy.tiny is not None:
            model: Any = tiny_model(cast(Any, tokenizer), **policy.tiny.model_dump(exclude={"vocab_size"}))
        else:
            model = AutoModelForCausalLM.from_config(_config(policy.model))
    names = [name for name, _ in model.named_modules()]
    # Peft passes over names of a list that are nowhere, if others are there; a text is a pattern to it.
    listed = [] if isinstance(lora.target_modules, str) else lora.target_modules
    missing = [part for part in listed if not any(name == part or name.endswith(f".{part}") for name in names)]
    if missing:
        said = " or ".join(missing)
        leaves = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if not [*module.children()]})
        return Finding(
            "adapter",
            "fail",
            f"policy.lora.target_modules: no module is called {said}; the model has {', '.join(leaves)}",
        )
    try:
        with torch.device("meta"):
            targets = add_adapter(model, lora_config(lora, "CAUSAL_LM")).targeted_module_names
    except UserError as error:
        return Finding("adapter", "fail", str(error))
    kinds = sorted({name.rpartition(".")[2] for name in targets})
    return Finding("adapter", "ok", f"rank {lora.rank} on {len(targets):,} modules: {', '.join(kinds)}")
