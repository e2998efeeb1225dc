"""Runs of seconds, for what reads the folder of one."""

from pathlib import Path

from alignment import loop
from alignment.config import load_recipe

ROOT = Path(__file__).parents[1]
_SMALL = (
    "policy.tiny={hidden_size: 16, num_layers: 1, num_heads: 2, vocab_size: 300}",
    "training.max_steps=2",
    "training.learning_rate=0.05",
    "training.per_device_train_batch_size=4",
    "training.disable_tqdm=true",
)


def small_run(folder: Path, *overrides: str, recipe: str = "dpo/tiny") -> Path:
    """Train two steps by a shipped recipe, with a tiny model and a step size that moves it."""
    path = ROOT / "recipes" / f"{recipe}.yaml"
    loop.run(load_recipe(path, [*_SMALL, *overrides, f"output_dir={folder}"]).recipe)
    return folder
