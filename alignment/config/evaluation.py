"""Recipes of ``alignment evaluate``: who answers which prompts, against whom, and who judges."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alignment.config.block import Block
from alignment.config.compose import Loaded, compose
from alignment.config.parsing import dump_yaml
from alignment.config.problems import check_block
from alignment.config.schema import AnsweringSpec, schema_keys, without_nulls
from alignment.errors import UserError
from alignment.generation.options import ServerOptions
from alignment.oracles import check_oracle
from alignment.oracles.endpoint import EndpointSpec, check_client
from alignment.oracles.templates import SINGLE, read_template

_NAME = re.compile(r"\w[\w.-]*")


class AnswererSpec(Block):
    """Who answers: a model that samples here, one that a server has, or a file of answers.

    Attributes:
        run: a run folder, the folder of a model, a name on the Hub, or ``textgame://model``.
        checkpoint: of a run folder, in place of its final model.
        server: where a model is, and what it is called there.
        outputs: AlpacaEval's ``model_outputs.json``, or any file of ``instruction`` and ``output``.
    """

    run: str | None = Field(default=None, min_length=1)
    checkpoint: int | None = Field(default=None, ge=0)
    server: ServerOptions | None = None
    outputs: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = {"run": self.run, "server": self.server, "outputs": self.outputs}
        given = [name for name, source in sources.items() if source is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of run, server and outputs, got {' and '.join(given) or 'none'}")
        if self.checkpoint is not None and self.run is None:
            raise ValueError(f"expected checkpoint only with run, got it with {given[0]}")
        return self

    @property
    def samples(self) -> bool:
        """Whether it is a model."""
        return self.outputs is None


class PromptsSpec(Block):
    """What is answered.

    Attributes:
        path: a file of any shape that recipes read, or ``textgame://prompts``.
        held_out: a run, in place of a file: the prompts that it held out.
        set: the benchmark that the file is: it must have all its prompts, and its categories are known.
        prompt_role: what a prompt given as a string is: a turn of a conversation, or raw text.
        category: the column of a prompt's category; ``None`` for that of the set.
        limit: only the first so many.
    """

    path: str | None = Field(default=None, min_length=1)
    held_out: str | None = Field(default=None, min_length=1)
    # The last one has a recipe of its own, and stands here for whoever misspells it.
    set: Literal["alpaca_eval", "arena_hard_v0.1", "arena_hard_v2.0", "mt_bench"] | None = None
    prompt_role: Literal["text", "user"] = "user"
    category: str | None = None
    limit: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.held_out is None):
            raise ValueError(f"expected path or held_out, got {'neither' if self.path is None else 'both'}")
        unread = sorted(self.model_fields_set & {"set", "prompt_role", "category"})
        if self.held_out is not None and unread:
            raise ValueError(f"expected {unread[0]} only with path, got it with held_out; nothing would read it")
        return self


class DecodingSpec(AnsweringSpec):
    """How the models answer; all of them alike.

    Attributes:
        temperature: 0 takes the likeliest token at each step.
        max_new_tokens: the longest answer.
        num_completions: answers to a prompt.
        engine: who draws the tokens of a model that samples here.
    """

    temperature: float = Field(ge=0, allow_inf_nan=False)
    max_new_tokens: int = Field(gt=0)
    engine: Literal["transformers", "vllm"] = "transformers"


class LengthControlSpec(Block):
    """Inputs of AlpacaEval's length-controlled win rate; see ``alignment score alpaca_eval2``.

    Attributes:
        difficulty: file of the instructions' difficulties.
        regularizer: file of the regularising judgements; without it the variant is ``noreg``.
        c: the fit's inverse strength of the penalty; ``None`` cross-validates it.
        bootstrap: samples of its interval.
    """

    difficulty: str = Field(min_length=1)
    regularizer: str | None = None
    c: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    bootstrap: int = Field(default=200, ge=2)


class CertificateSpec(Block):
    """A lower bound on how far a policy can be exploited, by an adversary that answers the same prompts.

    Attributes:
        policy: whose exploitability it is; frozen.
        adversary: who attacks it; ``None`` for the policy itself, by the best of its answers.
        best_of: answers of the adversary to a prompt, of which one is chosen; ``None`` takes as many as of the policy
            and chooses none.
        num_answers: answers of the policy to a prompt, each of which meets all of the adversary's.
    """

    policy: str
    adversary: str | None = None
    best_of: int | None = Field(default=None, gt=1)
    num_answers: int = Field(gt=0)

    @model_validator(mode="after")
    def _somebody_attacks(self) -> Self:
        if self.adversary is None and self.best_of is None:
            raise ValueError("expected an adversary or best_of, got neither")
        if self.adversary == self.policy:
            raise ValueError(f"expected another adversary than {self.policy}; leave it out for the best of its own")
        if self.best_of is not None and self.num_answers < 2:
            raise ValueError("expected num_answers: 2 at least with best_of: one to choose by and one to count")
        return self

    @property
    def attacker(self) -> str:
        """Who attacks."""
        return self.adversary or self.policy

    @property
    def num_candidates(self) -> int:
        """Answers of the adversary to a prompt."""
        return self.best_of or self.num_answers


class AnsweringRecipe(Block):
    """What all evaluations have: who answers, whom they meet, and how models answer."""

    policies: dict[str, AnswererSpec] = Field(min_length=1)
    opponents: list[str] = Field(default=[])
    sampling: DecodingSpec | None = None
    output_dir: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        # Each names a file.
        odd = [name for name in self.policies if not _NAME.fullmatch(name)]
        if odd:
            raise ValueError(f"policies: expected names of letters, digits, '_', '.' and '-', got {odd[0]!r}")
        unknown = [name for name in self.opponents if name not in self.policies]
        if unknown:
            raise ValueError(f"opponents: expected names among {', '.join(self.policies)}, got {unknown[0]!r}")
        if len(set(self.opponents)) < len(self.opponents):
            raise ValueError(f"opponents: expected each once, got {', '.join(self.opponents)}")
        if self.opponents and len(self.policies) < 2:
            raise ValueError(f"policies: expected another one than the opponent {self.opponents[0]}, got none")
        return self

    @model_validator(mode="after")
    def _sampling_is_read(self) -> Self:
        samples = any(spec.samples for spec in self.policies.values())
        if samples != (self.sampling is not None):
            found = "none" if samples else "it with files of answers only"
            raise ValueError(f"expected sampling where a policy has a run or a server, and only there, got {found}")
        return self

    @property
    def num_completions(self) -> int:
        """Answers to a prompt."""
        return 1 if self.sampling is None else self.sampling.num_completions

    @property
    def engine_packages(self) -> tuple[str, ...]:
        """What draws answers besides the packages that are always there."""
        return ("vllm",) if self.sampling is not None and self.sampling.engine == "vllm" else ()

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that reads back to an equal one."""
        return dump_yaml(self.model_dump(mode="json", exclude_none=True))


def annotations_file(policy: str, opponent: str) -> str:
    """What the file of a cell's verdicts is called."""
    return f"{policy}-vs-{opponent}.json"


class EvaluationRecipe(AnsweringRecipe):
    """An evaluation by win rates. Every policy meets every opponent but itself; opponents are policies, too."""

    prompts: PromptsSpec
    oracle: dict[str, Any]
    certificates: list[CertificateSpec] = Field(default=[])
    length_control: LengthControlSpec | None = None

    @model_validator(mode="after")
    def _somebody_meets_somebody(self) -> Self:
        if not self.opponents and not self.certificates:
            raise ValueError("opponents: expected one of the policies at least, or certificates, got neither")
        return self

    @model_validator(mode="after")
    def _cells_have_files_of_their_own(self) -> Self:
        cells: dict[str, tuple[str, str]] = {}
        for cell in ((name, opponent) for name in self.policies for opponent in self.opponents if name != opponent):
            file = annotations_file(*cell)
            if file in cells:
                said = " and ".join(f"{name!r} against {opponent!r}" for name, opponent in (cells[file], cell))
                raise ValueError(
                    f"policies: expected names that give each cell a file of its own, found annotations/{file} for "
                    f"{said}; give one of them another name"
                )
            cells[file] = cell
        return self

    @model_validator(mode="after")
    def _certificates_can_be_drawn(self) -> Self:
        for spec in self.certificates:
            unknown = [name for name in (spec.policy, spec.attacker) if name not in self.policies]
            if unknown:
                raise ValueError(f"certificates: expected names among {', '.join(self.policies)}, got {unknown[0]!r}")
            if self.policies[spec.policy].outputs is not None and spec.num_answers > 1:
                raise ValueError(f"certificates: expected num_answers: 1 of {spec.policy}, which is a file")
            if self.policies[spec.attacker].outputs is not None and spec.best_of is not None:
                raise ValueError(f"certificates: expected no best_of of {spec.attacker}, which is a file")
            if self.sampling is not None and self.sampling.temperature == 0 and spec.num_answers > 1:
                raise ValueError("certificates: expected a temperature above 0, at which answers differ, got 0")
        return self

    @model_validator(mode="after")
    def _length_control_is_of_single_answers(self) -> Self:
        if self.length_control is not None and self.num_completions > 1:
            raise ValueError(f"expected one answer to a prompt with length_control, got {self.num_completions}")
        return self

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that reads back to an equal one."""
        return dump_yaml({**self.model_dump(mode="json", exclude_none=True), "oracle": dict(self.oracle)})


class MTBenchPromptsSpec(Block):
    """MT-Bench's questions.

    Attributes:
        path: FastChat's ``question.jsonl``.
        set: the benchmark.
        references: FastChat's ``reference_answer/gpt-4.jsonl``: the judge sees these answers to questions of math,
            reasoning and coding.
        limit: only the first so many.
    """

    path: str = Field(min_length=1)
    set: Literal["mt_bench"]
    references: str | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, gt=0)


class MTBenchJudgeSpec(EndpointSpec):
    """Who judges MT-Bench; the form of questions and replies is the benchmark's.

    Attributes:
        grade_template: file of the question for a grade, with ``{prompt}`` and ``{answer}``.
        pair_template: file of the question about two models, with ``{prompt}``, ``{left}`` and ``{right}``.
        max_tokens: of the reply.
    """

    grade_template: str | None = None
    pair_template: str | None = None
    max_tokens: int = Field(default=2048, gt=0)

    def read_grade_template(self) -> str:
        """The question for a grade."""
        return read_template(self.grade_template, shipped="mt_bench_grade", placeholders=SINGLE)

    def read_pair_template(self) -> str:
        """The question about two models."""
        return read_template(self.pair_template, shipped="mt_bench_pair")

    def check(self) -> None:
        """Raise what can be known before anybody is asked.

        Raises:
            UserError: for a template that cannot be read, and a client that is not installed.
        """
        self.read_grade_template()
        self.read_pair_template()
        check_client("judge")


class MTBenchRecipe(AnsweringRecipe):
    """MT-Bench: two turns, of which the second asks about the first answer.

    Attributes:
        grades: whether every answer is graded from 1 to 10; every policy is compared with every opponent as well.
    """

    prompts: MTBenchPromptsSpec
    judge: MTBenchJudgeSpec
    grades: bool = True

    @model_validator(mode="after")
    def _something_is_judged(self) -> Self:
        if not self.grades and not self.opponents:
            raise ValueError("expected grades: true or opponents, got neither: there is nothing to judge")
        if self.num_completions > 1:
            raise ValueError(f"sampling.num_completions: expected 1 for mt_bench, got {self.num_completions}")
        return self


def load_evaluation_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[EvaluationRecipe | MTBenchRecipe]:
    """Read a recipe of ``alignment evaluate``; as :func:`alignment.config.load_recipe`.

    Raises:
        UserError: with one line for each mistake.
    """
    composed = compose(path, overrides, command="evaluate")
    tree = without_nulls(composed.tree)
    prompts = tree.get("prompts")
    is_mt_bench = isinstance(prompts, dict) and prompts.get("set") == "mt_bench"
    kind: type[EvaluationRecipe | MTBenchRecipe] = MTBenchRecipe if is_mt_bench else EvaluationRecipe
    recipe, problems = check_block(kind, tree, tuple(schema_keys(kind)))
    if isinstance(tree.get("oracle"), dict):
        try:
            check_oracle(tree["oracle"])
        except UserError as error:
            problems.setdefault("oracle", str(error))
    if isinstance(recipe, MTBenchRecipe):
        recipe.judge.check()
    composed.raise_problems(problems)
    assert recipe is not None
    return Loaded(recipe=recipe, notes=composed.notes)
