"""A run's model as a folder that loads anywhere: the adapter merged, weights, tokenizer, generation settings, card."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from alignment.config import Recipe
from alignment.data import stop_token_ids
from alignment.errors import UserError
from alignment.folders import run_card
from alignment.models import DTYPES
from alignment.trained import TrainedModel

# A folder with these beside other weights would load the wrong ones.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json", "adapter_*")


def export(model: TrainedModel, destination: Path, *, dtype: str | None = None, force: bool = False) -> str:
    """Write a model that ``AutoModelForCausalLM.from_pretrained(destination)`` loads.

    Args:
        model: whole, or an adapter, which is merged into its base model.
        destination: a new or an empty folder.
        dtype: of the weights; ``None`` for that of the recipe, or the one that they are stored in.
        force: write into a folder that holds something; weights that lie there are removed.

    Returns:
        What was done, in a line.

    Raises:
        UserError: if the folder holds something, is the model's own, or the base model is quantised.
    """
    check_destination(model, destination, force=force)
    whole = model.load_whole()
    precision = DTYPES[dtype] if dtype is not None else _stored(model, whole)
    whole = whole.to(precision)
    # An answer ends where it ended in training.
    known = whole.generation_config.eos_token_id
    ends = [*stop_token_ids(model.tokenizer), *([known] if isinstance(known, int) else known or [])]
    whole.generation_config.eos_token_id = list(dict.fromkeys(ends))
    whole.generation_config.pad_token_id = model.tokenizer.pad_token_id
    partial = destination.with_name(f"{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    whole.save_pretrained(partial)
    model.tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(_card(model))
    destination.mkdir(parents=True, exist_ok=True)
    for pattern in _WEIGHTS:
        for stale in destination.glob(pattern):
            stale.unlink()
    for path in partial.iterdir():
        shutil.move(path, destination / path.name)
    partial.rmdir()
    what = "copied" if model.adapter is None else "merged the adapter into its base model"
    if model.is_from_4bit:
        what += " (with weights as they were before the 4-bit quantisation that it was trained on)"
    return f"{what}, {str(precision).removeprefix('torch.')}: {destination}"


def check_destination(model: TrainedModel, destination: Path, *, force: bool) -> None:
    """Refuse a folder that would be mixed with something else, before anything is loaded.

    Raises:
        UserError: if it holds something and ``force`` is false, if it is a file, or if the model lies in it.
    """
    if destination.exists() and not destination.is_dir():
        raise UserError(f"expected a folder to write to, found the file '{destination}'")
    source = Path(model.source)
    if source.exists() and source.resolve().is_relative_to(destination.resolve()):
        raise UserError(f"expected a folder apart from the model's own, got '{destination}', which holds it")
    if destination.exists() and any(destination.iterdir()) and not force:
        raise UserError(f"'{destination}' is not empty; name another folder, or add --force")


def _stored(model: TrainedModel, whole: Any) -> torch.dtype:
    """Merging happens in float32; what is written is as precise as what was trained."""
    if model.adapter is None:
        return whole.dtype
    return DTYPES[model.recipe.policy.dtype] if model.recipe is not None else torch.float32


def _card(model: TrainedModel) -> str:
    written = Path(model.source, "README.md")
    if isinstance(model.recipe, Recipe) and model.run is not None:
        summary = model.run / "summary.json"
        # Only the final model was measured at the end.
        is_final = summary.exists() and Path(model.source).name == "final"
        metrics = json.loads(summary.read_text()) if is_final else {"before": {}, "after": {}}
        return run_card(model.recipe, before=metrics["before"], after=metrics["after"])
    if model.adapter is None and written.exists():
        return written.read_text()
    start = (model.recipe.policy.model if model.recipe is not None else None) or "a model with random weights"
    return f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {model.name}\n\nFrom `{start}`.\n"
