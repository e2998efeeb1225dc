"""What a run will need, before anything is spent: memory of a device, tokens, questions to the oracle, operations.

No weights are loaded and nothing is fetched: the model is built without storage from its configuration, data are read
where they are files on this machine, and everything else is arithmetic (:mod:`alignment.costs`, docs/scaling.md).
Evaluations are not planned.
"""

import functools
import operator
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from alignment.config import Recipe, build_arguments
from alignment.config.launch import Launch
from alignment.errors import UserError
from alignment.oracles.build import leaves_of
from alignment.oracles.specs import ModelSpec
from alignment.planning.memory import Line, memory_lines
from alignment.planning.outline import Outline, judge_bytes, outline_policy
from alignment.planning.reading import find_rows, measure
from alignment.planning.run import Run
from alignment.planning.work import Work, work_of
from alignment.textgame import is_address
from alignment.types import Needs

__all__ = ["Line", "Outline", "Plan", "Run", "Work", "plan", "run_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An estimate.

    Attributes:
        model: what is trained.
        parameters: numbers of the policy, an adapter's among them.
        trained: those that are trained.
        launch: processes, and what they share.
        lines: memory of a device.
        rows: that are trained on; ``None`` where nobody knows.
        work: of all players.
        notes: what was assumed or left out.
    """

    model: str
    parameters: int
    trained: int
    launch: Launch
    lines: tuple[Line, ...]
    rows: int | None
    work: Work
    notes: tuple[str, ...]

    @property
    def total(self) -> Line:
        """The sums of all lines."""
        return Line(
            name="total",
            formula="",
            training=sum(line.training for line in self.lines),
            sampling=sum(line.sampling for line in self.lines),
        )

    @property
    def peak(self) -> int:
        """Bytes of a device, training or sampling."""
        return max(self.total.training, self.total.sampling)

    def hours(self, tflops: float) -> float | None:
        """Of the run, at so many times 10^12 operations a second of each device; ``None`` where rows are unknown."""
        flops = self.work.flops
        return None if flops is None else flops / (tflops * 1e12 * self.launch.processes * 3600)

    def to_json(self, *, memory: float | None, tflops: float | None) -> dict[str, Any]:
        """All of it, with what follows for a device of so many bytes and operations a second."""
        bytes_ = {
            "lines": [asdict(line) for line in self.lines],
            **{"training": self.total.training, "sampling": self.total.sampling, "peak": self.peak},
        }
        return {
            **{"model": self.model, "parameters": self.parameters, "trained": self.trained},
            **{"processes": self.launch.processes, "sharding": self.launch.sharding},
            "bytes": bytes_ | ({} if memory is None else {"device": memory, "fits": self.peak <= memory}),
            "rows": self.rows,
            **asdict(self.work),
            **({} if tflops is None else {"hours": self.hours(tflops)}),
            "notes": list(self.notes),
        }


def plan(
    recipe: Recipe,
    launch: Launch,
    *,
    config_of: str | None = None,
    rows: int | None = None,
    responses: int | None = None,
    memory: float | None = None,
) -> Plan:
    """Estimate a run.

    Args:
        recipe: a checked one.
        launch: its processes.
        config_of: a folder, or a name in the cache, whose configuration stands for the policy's.
        rows: that are trained on, where the data are not files on this machine.
        responses: of a prompt, likewise.
        memory: bytes of a device.

    Raises:
        UserError: if the model's configuration is not on this machine.
    """
    run = run_of(recipe, launch, config_of=config_of, rows=rows, responses=responses)
    judges, unknown = _judges(recipe, run)
    return Plan(
        model=recipe.policy.model or "policy.tiny",
        parameters=run.outline.parameters,
        trained=run.outline.trained,
        launch=launch,
        lines=(*memory_lines(run, memory=memory), *judges),
        rows=run.lengths.rows,
        work=functools.reduce(operator.add, map(work_of, _by_player(run, recipe))),
        notes=(*_notes(run, responses, memory is not None), *unknown),
    )


def run_of(
    recipe: Recipe,
    launch: Launch,
    *,
    config_of: str | None = None,
    rows: int | None = None,
    responses: int | None = None,
) -> Run:
    """What is planned; arguments as of :func:`plan`. Of several players the first."""
    if recipe.training.get("deepspeed") is not None or recipe.training.get("fsdp"):
        raise UserError("training: expected the launch in a file of its own (--accelerate), got deepspeed or fsdp")
    own = next(iter(recipe.by_player().values()))
    needs = own.build_method().needs
    found = find_rows(recipe)
    _refuse_unread(own, needs, found is not None, config_of=config_of, rows=rows, responses=responses)
    outline = outline_policy(recipe.policy, tokenizer=None if found is None else found.tokenizer, config_of=config_of)
    return Run(
        recipe=own,
        needs=needs,
        outline=outline,
        launch=launch,
        args=build_arguments(recipe),
        lengths=measure(own, needs, found, rows=rows, responses=responses),
    )


def _refuse_unread(
    recipe: Recipe, needs: Needs, is_here: bool, *, config_of: str | None, rows: int | None, responses: int | None
) -> None:
    """Options that would change nothing."""
    samples = needs.samples_in_batches or recipe.samples_in_rounds
    if is_here and (rows is not None or responses is not None):
        raise UserError("--rows, --responses: expected neither where the data are on this machine, which are counted")
    if samples and responses is not None:
        raise UserError("--responses: expected none where they are sampled: sampling.num_completions says how many")
    if config_of is not None and (recipe.policy.tiny is not None or is_address(recipe.policy.model)):
        raise UserError("--config-of: expected none for a model that is made on the spot")


def _by_player(run: Run, recipe: Recipe) -> Iterator[Run]:
    for own in recipe.by_player().values():
        yield replace(run, recipe=own, needs=own.build_method().needs)


def _notes(run: Run, responses: int | None, has_memory: bool) -> Iterator[str]:
    lengths, recipe = run.lengths, run.recipe
    if not lengths.is_counted:
        yield (
            f"lengths are bounds: prompts of {lengths.prompt:,} tokens, responses of {lengths.response:,}; counted are "
            "those of files, by a tokenizer on this machine"
        )
    if lengths.rows is None:
        paths = ", ".join(path for source in recipe.data.sources for path in source.path)
        yield f"{paths} is not on this machine: --rows N says how many rows are trained on"
        if responses is None and recipe.data.prompts is None and lengths.responses == 2:
            yield "two responses of a prompt are assumed: --responses N says otherwise"
    if recipe.sampling.engine == "vllm" and not has_memory and run.draws:
        yield "vLLM's share of the device is not counted: --memory says how large that is"
    if not run.outline.shape.is_understood:
        yield "the layers are not those that the formulas are about: activations and operations are rough"
    if recipe.evaluation is not None or recipe.training.get("eval_strategy", "no") != "no":
        yield "evaluations are not planned"


def _judges(recipe: Recipe, run: Run) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """Models of the oracles, which every process holds whole, and those of which nothing is known here."""
    specs = [own.oracle for own in recipe.by_player().values()]
    specs += [None if recipe.evaluation is None else recipe.evaluation.oracle]
    lines, unknown = [], []
    for leaf in (leaf for spec in specs if spec is not None for leaf in leaves_of(spec)):
        if not isinstance(leaf, ModelSpec):
            continue
        size = judge_bytes(leaf.model)
        if size is None:
            unknown.append(f"the oracle's model '{leaf.model}' is not counted: no configuration of it is here")
        else:
            lines.append(
                Line(name="oracle's model", formula=leaf.model, training=size, sampling=size if run.draws else 0)
            )
    return tuple(lines), tuple(unknown)
