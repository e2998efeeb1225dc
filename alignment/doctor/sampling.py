"""Checks of who answers, and of who is asked."""

from collections.abc import Callable, Iterator
from functools import partial

from alignment.config import Recipe, SamplingSpec
from alignment.doctor.findings import Finding
from alignment.errors import UserError
from alignment.generation import ServerOptions, VLLMOptions, check_engine, read_options
from alignment.generation.http import read_key
from alignment.oracles import check_keys, check_models, oracle_name


def draws_answers(recipe: Recipe) -> bool:
    """Whether the method learns from answers that are drawn."""
    return recipe.samples_in_rounds or recipe.build_method().needs.samples_in_batches


def is_judged(recipe: Recipe) -> bool:
    """Whether answers to held-out prompts are judged."""
    return any(own.judge is not None for own in recipe.by_player().values())


def check_engine_and_oracle(recipe: Recipe) -> Iterator[Finding]:
    """Packages, keys and models, without which training ends before its first step. Nobody is asked."""
    judge = None if recipe.evaluation is None else recipe.evaluation.oracle
    oracles = [spec for spec in (*(own.oracle for own in recipe.by_player().values()), judge) if spec is not None]
    checks: list[Callable[[], None]] = [partial(_check_sampler, recipe.sampling)] if draws_answers(recipe) else []
    checks += [partial(check, spec) for spec in oracles for check in (check_keys, check_models)]
    faults = dict.fromkeys(fault for check in checks if (fault := _fault(check)) is not None)
    for fault in faults:
        yield Finding("engine and oracle", "fail", fault)
    if checks and not faults:
        engine = [f"answers by '{recipe.sampling.engine}'"] if draws_answers(recipe) else []
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
