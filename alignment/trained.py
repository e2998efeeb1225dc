"""Models on disk: what a run left, one of its checkpoints, a folder in the ordinary formats, a name on the Hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignment.cache import model_digest
from alignment.config import Recipe
from alignment.config.compose import compose
from alignment.config.fitting import SFTRecipe
from alignment.config.schema import without_nulls
from alignment.errors import UserError
from alignment.models import load_causal_model, load_policy
from alignment.preparation import PreparedData, prepare_data
from alignment.textgame import is_address, resolve_model

_PARTS = ("final", "model")
_CONFIG, _ADAPTER = "config.json", "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A causal language model that can be loaded, and the run that made it.

    Attributes:
        source: its folder, or its name on the Hub.
        name: what a report calls it.
        tokenizer: with a padding token.
        adapter: the adapter's configuration; ``None`` for a whole model.
        recipe: of the run; ``None`` for a model of unknown origin.
        run: the folder in which the recipe stands.
    """

    source: str
    name: str
    tokenizer: PreTrainedTokenizerBase
    adapter: Mapping[str, Any] | None
    recipe: Recipe | SFTRecipe | None
    run: Path | None

    @property
    def is_from_4bit(self) -> bool:
        """Whether it is an adapter that was trained on weights quantised for the run."""
        return self.adapter is not None and self.recipe is not None and self.recipe.policy.load_in_4bit

    def load(self) -> PreTrainedModel | PeftModel:
        """The model, in evaluation mode; an adapter on its base as that was in training, 4-bit weights included."""
        if self.adapter is None:
            return _from_pretrained(self.source).eval()
        return self._adapted(self._base({})).eval()

    def load_whole(self) -> PreTrainedModel:
        """The model without an adapter, which is merged into its base in float32, and never into 4-bit weights.

        Raises:
            UserError: if the base model's own weights are quantised.
        """
        if self.adapter is None:
            return _from_pretrained(self.source).eval()
        base = self._base({"load_in_4bit": False, "dtype": "float32"})
        if "quantization_config" in base.config.to_dict():
            raise UserError(
                f"{self.source}: expected a base model whose weights are not quantised, found '{base.name_or_path}'; "
                "an adapter is not added to quantised weights without loss: set policy.model to the original"
            )
        merged: PreTrainedModel = self._adapted(base).merge_and_unload()
        return merged.eval()

    def version(self) -> str:
        """What tells it from another model: a hash of the files in its folder, or its commit on the Hub.

        The base model of an adapter counts by its name.

        Raises:
            UserError: if the Hub's cache does not say the commit.
        """
        folder = Path(self.source)
        if not folder.is_dir():
            commit = vars(AutoConfig.from_pretrained(self.source)).get("_commit_hash")
            if commit is None:
                raise UserError(f"expected a commit of '{self.source}' on the Hub, found none; give a folder")
            return str(commit)
        digest = model_digest(folder)
        if self.adapter is not None and self.recipe is not None:
            digest.update(json.dumps([self.recipe.policy.model_dump(mode="json"), self.recipe.seed]).encode())
        return digest.hexdigest()

    def load_reference(self) -> PreTrainedModel:
        """What training started from: the run's reference, or the adapter's base model.

        Raises:
            UserError: if nothing says what that was.
        """
        if isinstance(self.recipe, Recipe) and self.recipe.policy.ref_model is not None:
            return load_causal_model(self.recipe.policy.ref_model, self.recipe.policy).eval()
        if self.recipe is not None or self.adapter is not None:
            return self._base({}).eval()
        raise UserError(f"{self.source}: expected a recipe.yaml or an adapter, which say what the reference is")

    def _base(self, changes: Mapping[str, Any]) -> PreTrainedModel:
        """What training started from, by the recipe's ``policy:`` block with changes, or by the adapter."""
        if self.recipe is None:
            return _from_pretrained(_base_name(self.source, self.adapter), changes.get("dtype", "auto"))
        return load_policy(self.recipe.policy.model_copy(update=changes), self.tokenizer, seed=self.recipe.seed)

    def _adapted(self, base: PreTrainedModel) -> PeftModel:
        try:
            return PeftModel.from_pretrained(base, self.source)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.source}: expected an adapter of its base model ({_first_line(error)})") from None


def find_model(name: str, *, checkpoint: int | None = None) -> TrainedModel:
    """Find a model by what a user calls it; its weights are not loaded yet.

    Args:
        name: a run folder, a checkpoint or any other folder of a model, a name on the Hub, or ``textgame://model``.
        checkpoint: of a run folder, in place of its final model.

    Raises:
        UserError: if there is no such folder, no causal language model in it, or no such checkpoint.
    """
    path = Path(resolve_model(name))
    if path.exists():
        folder = _model_folder(path, checkpoint)
        source = str(folder)
        label = name if is_address(name) else path.resolve().name
        label += "" if checkpoint is None else f"/checkpoint-{checkpoint}"
    elif checkpoint is not None or name.count("/") > 1 or name.startswith(("/", ".")):
        raise UserError(f"expected the folder of a run or of a model, found no '{name}'")
    else:
        folder, source, label = None, name, name
    adapter = _adapter(folder)
    if adapter is not None and adapter.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(f"{source}: expected a language model, found an adapter for {adapter['task_type']}")
    if adapter is None:
        _check_architecture(source)
    run = None if folder is None else _run_folder(folder)
    recipe = None if run is None else _read_recipe(run / "recipe.yaml")
    has_own = adapter is None or folder is None or (folder / "tokenizer_config.json").exists()
    tokenizer = _tokenizer(source if has_own else _base_name(source, adapter))
    return TrainedModel(source=source, name=label, tokenizer=tokenizer, adapter=adapter, recipe=recipe, run=run)


def run_data(model: TrainedModel) -> PreparedData:
    """The rows that a run was trained on, and those that it held out, read again by its recipe.

    Raises:
        UserError: if no recipe says them, or they cannot be read any more.
    """
    if model.recipe is None:
        raise UserError(f"{model.source}: expected a run with a recipe.yaml, which says its prompts, found none")
    return prepare_data(model.recipe.data, seed=model.recipe.seed, announce=lambda line: None)


def _model_folder(path: Path, checkpoint: int | None) -> Path:
    if not path.is_dir():
        raise UserError(f"expected the folder of a run or of a model, found the file '{path}'")
    there = sorted(int(part.name.removeprefix("checkpoint-")) for part in path.glob("checkpoint-[0-9]*"))
    listed = ", ".join(map(str, there)) or "none"
    if checkpoint is not None:
        if checkpoint not in there:
            raise UserError(f"{path}: expected the number of a checkpoint, got {checkpoint}; there are: {listed}")
        return path / f"checkpoint-{checkpoint}"
    if _has_model(path):
        return path
    if _has_model(path / "final"):
        return path / "final"
    hint = f"; its checkpoints: {listed}" if there else _last_round(path)
    raise UserError(f"{path}: expected a language model there or in {path / 'final'}, found none{hint}")


def _last_round(run: Path) -> str:
    """Of a run that stands between rounds: where the last one's model is, for the end of an error."""
    rounds = [int(part.name.removeprefix("round-")) for part in run.glob("round-[0-9]*") if _has_model(part / "model")]
    return f"; there is round-{max(rounds)}/model" if rounds else ""


def _has_model(folder: Path) -> bool:
    return (folder / _CONFIG).exists() or (folder / _ADAPTER).exists()


def _adapter(folder: Path | None) -> Mapping[str, Any] | None:
    if folder is None or not (folder / _ADAPTER).exists():
        return None
    return dict(json.loads((folder / _ADAPTER).read_text()))


def _base_name(source: str, adapter: Mapping[str, Any] | None) -> str:
    name = None if adapter is None else adapter.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{source}: expected an adapter that names its base model, or a recipe.yaml beside it")
    return str(name)


def _check_architecture(source: str) -> None:
    """A classifier would load as a language model, with a head of random weights."""
    try:
        architectures = AutoConfig.from_pretrained(source).architectures or []
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected a folder, or the name of a model on the Hub, found no '{source}' ({_first_line(error)})"
        ) from None
    wrong = [name for name in architectures if "Classification" in name]
    if wrong:
        raise UserError(f"{source}: expected a causal language model, found a {wrong[0]}")


def _run_folder(folder: Path) -> Path | None:
    """Where the recipe of a model stands: in its own folder, or above where a run puts its models."""
    is_part = folder.name in _PARTS or folder.name.startswith("checkpoint-")
    candidates = (folder, *((folder.resolve().parent,) if is_part else ()))
    return next((place for place in candidates if (place / "recipe.yaml").exists()), None)


def _read_recipe(path: Path) -> Recipe | SFTRecipe:
    """A resolved recipe: checked when it was written, so files that it names need not be here any more."""
    tree = without_nulls(compose(path, ()).tree)
    try:
        return (Recipe if "method" in tree else SFTRecipe).model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: expected a recipe of this version ({error.error_count()} mistakes)") from None


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: expected a tokenizer ({_first_line(error)})") from None
    if tokenizer.pad_token_id is None:
        # Masks decide everything; the token only fills gaps.
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def _from_pretrained(source: str, dtype: str = "auto") -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: expected the weights of a language model ({_first_line(error)})") from None
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
