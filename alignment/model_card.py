"""The README of a trained model: method, paper, recipe, data and what was measured."""

from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCardData

import alignment
from alignment.types import Method


def model_card(
    method: Method,
    *,
    name: str,
    base_model: str | None,
    data: Sequence[str],
    recipe: str | None,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> str:
    """Markdown with the metadata that the Hub reads.

    Args:
        method: the method that trained the model.
        name: of the method, as a recipe says it.
        base_model: where training started; ``None`` for random weights.
        data: what it was trained on, one entry a source.
        recipe: the resolved recipe as YAML, where there is one.
        before: metrics on held-out rows at the start.
        after: the same at the end.
    """
    metadata = ModelCardData(
        library_name="transformers",
        base_model=base_model,
        tags=["alignment", "preference-optimization", name],
        pipeline_tag="text-generation",
    )
    paper = method.paper
    start = f"`{base_model}`" if base_model else "a model with random weights"
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name} on {start}",
        f"Trained with the method `{name}` of nash-alignment {alignment.__version__}, from the paper "
        f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv}).",
        "## Data\n\n" + "\n".join(f"- `{source}`" for source in data) if data else "",
        _results(before, after),
        f"## Recipe\n\n```yaml\n{recipe.strip()}\n```" if recipe else "",
        f"## Citation\n\n```bibtex\n{paper.bibtex(name)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    if not after:
        return ""
    rows = [f"| {name} | {before[name]:.4f} | {value:.4f} |" for name, value in after.items() if name in before]
    return "## On held-out rows\n\n| metric | before | after |\n|---|---|---|\n" + "\n".join(rows)
