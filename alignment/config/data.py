"""The keys of a ``data:`` block: where rows come from, and which of them are held out, left out, mixed and cut."""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from alignment.config.block import Block

ColumnSpec = str | list[str] | dict[str, str | list[str]]


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _named_columns(value: Any) -> Any:
    """One line for a wrong value: the branches of the union would fail one by one, each below its own key."""
    parts = list(value.values()) if isinstance(value, dict) else [value]
    names = [name for part in parts for name in (part if isinstance(part, list) else [part])]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected a column, a list of columns, or a column for each oracle, got {value}")
    return value


class DataSource(Block):
    """Data: paths or ``hf://owner/name``. ``prompt_role: user`` makes string prompts chat turns, not raw text."""

    path: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
    format: Literal[
        "auto", "pairs", "implicit", "hh", "labelled", "ranked", "scored", "unpaired", "completions", "prompts"
    ] = "auto"
    columns: dict[str, Annotated[ColumnSpec, BeforeValidator(_named_columns)]] | None = None
    labels: dict[str, Literal["left", "right", "tie", "good", "bad", "skip"]] | None = None
    annotators: Literal["separate", "mean"] = "separate"
    scores_as: Literal["given", "win_rates"] = "given"
    prompt_role: Literal["text", "user"] = "text"
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False
    limit: int | None = Field(default=None, gt=0)
    weight: float | None = Field(default=None, gt=0)


def _sources(value: Any) -> Any:
    return (value,) if not isinstance(value, list | tuple) else tuple(value)


# One source, or a list of them.
Sources = Annotated[tuple[DataSource, ...], BeforeValidator(_sources), Field(min_length=1)]


class FiltersSpec(Block):
    """Bounds that a row must keep to be trained or evaluated on: the options of ``alignment.data.filter_rows``."""

    max_prompt_chars: int | None = Field(default=None, gt=0)
    min_response_chars: int | None = Field(default=None, gt=0)
    max_response_chars: int | None = Field(default=None, gt=0)
    max_length_ratio: float | None = Field(default=None, ge=1)
    min_margin: float | None = Field(default=None, gt=0)
    min_agreement: float | None = Field(default=None, gt=0, le=1)
    min_letters: float | None = Field(default=None, gt=0, le=1)
    max_repetition: float | None = Field(default=None, ge=0, lt=1)
    distinct_responses: bool = False


class DuplicatesSpec(Block):
    """Rows that say the same twice are left out; ``similarity`` is the Jaccard index from which ``near`` ones are."""

    remove: Literal["exact", "near"]
    similarity: float = Field(default=0.8, gt=0, le=1)

    @model_validator(mode="after")
    def _exact_has_no_bound(self) -> Self:
        if self.remove == "exact" and "similarity" in self.model_fields_set:
            raise ValueError("expected similarity only with remove: near; exact duplicates have none")
        return self


class DecontaminateSpec(Block):
    """Training rows that hold a held-out prompt, or one of the sources ``against``, are left out."""

    against: Annotated[tuple[DataSource, ...], BeforeValidator(_sources)] = ()
    ngram: int = Field(default=8, gt=0)
    overlap: float = Field(default=0.5, ge=0, lt=1)


class MixingSpec(Block):
    """What happens when one of several weighted sources has run out."""

    stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"


class RowsSpec(Block):
    """What the data blocks of all commands share: how rows are held out, left out, mixed and cut; lengths in tokens."""

    evaluation: DataSource | None = None
    eval_fraction: float = Field(default=0.1, ge=0, lt=1)
    filters: FiltersSpec | None = None
    duplicates: DuplicatesSpec | None = None
    decontaminate: DecontaminateSpec | None = None
    mixing: MixingSpec = MixingSpec()
    max_prompt_length: int = Field(default=512, gt=0)
    max_completion_length: int = Field(default=512, gt=0)
    cache: bool = True

    @property
    @abstractmethod
    def sources(self) -> tuple[DataSource, ...]:
        """What is trained on."""

    @property
    def holds_out(self) -> bool:
        """Whether any rows are held out."""
        return self.evaluation is not None or self.eval_fraction > 0

    @abstractmethod
    def refusal(self, formats: Collection[str]) -> str | None:
        """What is wrong with files of these formats here, or ``None``."""

    @model_validator(mode="after")
    def _weights_are_for_mixing(self) -> Self:
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and (len(weighted) == 1 or not all(weighted)):
            raise ValueError("expected a weight for each of several sources, or none at all: then all rows are taken")
        if "mixing" in self.model_fields_set and not any(weighted):
            raise ValueError("expected sources with weights for data.mixing, got none; nothing would read it")
        others = (self.evaluation, *(self.decontaminate.against if self.decontaminate else ()))
        if any(source is not None and source.weight is not None for source in others):
            raise ValueError("expected weights only in the sources that are trained on")
        return self

    @model_validator(mode="after")
    def _one_evaluation(self) -> Self:
        if self.evaluation is not None and "eval_fraction" in self.model_fields_set:
            raise ValueError("expected data.evaluation or data.eval_fraction, got both; data.eval_fraction=null")
        return self


_WITHOUT_FEEDBACK = ("prompts", "completions")


class DataSpec(RowsSpec):
    """Where prompts, and for offline methods responses and feedback, come from."""

    preferences: Sources | None = None
    prompts: Sources | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.preferences is None) == (self.prompts is None):
            found = "neither" if self.prompts is None else "both (switch one off: data.preferences=null)"
            raise ValueError(f"expected exactly one of data.preferences and data.prompts, got {found}")
        if self.preferences is not None and any(source.format == "prompts" for source in self.preferences):
            raise ValueError(
                "expected feedback in data.preferences, got format 'prompts'; name the file in data.prompts"
            )
        return self

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """What is trained on."""
        return self.preferences or self.prompts or ()

    def refusal(self, formats: Collection[str]) -> str | None:
        """Files without feedback are no preferences."""
        wrong = [name for name in formats if name in _WITHOUT_FEEDBACK]
        if self.preferences is None or not wrong:
            return None
        return (
            f"expected feedback on responses in data.preferences, found the format {' and '.join(wrong)}; map its "
            "columns, or name the file in data.prompts"
        )


_SOURCE_KEYS = ("preferences", "prompts", "demonstrations")


def plain_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """A dumped data block without what nothing reads, sources first, and one source as a block, not a list of one."""
    sources = {key: list(data[key]) for key in _SOURCE_KEYS if key in data}
    unread = {*sources, *({"eval_fraction"} if "evaluation" in data else ())}
    if not any("weight" in source for listed in sources.values() for source in listed):
        unread.add("mixing")
    rest = {key: value for key, value in data.items() if key not in unread}
    if rest.get("duplicates", {}).get("remove") == "exact":
        rest["duplicates"] = {"remove": "exact"}
    return {key: listed[0] if len(listed) == 1 else listed for key, listed in sources.items()} | rest
