"""``alignment reward``: a Bradley-Terry reward model through ``trl.RewardTrainer``, or one for each group.

P(y beats y') = sigmoid(r(x, y) - r(x, y')), by maximum likelihood (arXiv 2203.02155, eq. 1, without its division by the
number of pairs of a list).
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from transformers import TrainerCallback, set_seed
from trl import RewardConfig

from alignment.checkpoints import find_checkpoint
from alignment.config.fitting import RewardRecipe
from alignment.data import EncodedRow, Row
from alignment.errors import UserError
from alignment.files import write_json
from alignment.fitting.mixture import run_mixture
from alignment.fitting.setup import WRITTEN_LAST, build_config, print_table
from alignment.folders import RunFiles, RunResult, check_begins_or_continues, write_header
from alignment.models import load_reward_model, load_tokenizer, lora_config
from alignment.preparation import encode_aloud, prepare_data, write_report
from alignment.progress import run_console
from alignment.ranks import Ranks
from alignment.rewards.em import log_sigmoid
from alignment.rewards.pairs import StrictPairs, TextPair, strict_pairs
from alignment.rewards.separation import accuracy
from alignment.rewards.text import TextBradleyTerry
from alignment.weights import add_adapter


def run(recipe: RewardRecipe) -> RunResult:
    """Train a reward model by a recipe, or with ``mixture`` one for each group of annotators.

    Returns:
        Where the model is, and the metrics.

    Raises:
        UserError: for anything in the data or the recipe that cannot be trained on.
    """
    args = build_config(RewardConfig, recipe)
    is_first = args.process_index == 0
    if recipe.mixture is not None and args.world_size > 1:
        raise UserError(f"mixture: expected one process, found {args.world_size}; start it without a launcher")
    console = run_console(quiet=not is_first)
    set_seed(recipe.seed)
    data = prepare_data(recipe.data, seed=recipe.seed, announce=console.print)
    tokenizer = load_tokenizer(recipe.policy, data.train)

    def pairs_of(name: str, part: Sequence[Row]) -> tuple[TextPair, ...]:
        return _pairs(name, encode_aloud(name, part, tokenizer, recipe.data, console.print), console)

    train_pairs, eval_pairs = pairs_of("training", data.train), pairs_of("held-out", data.evaluation)
    folder = Path(recipe.output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, folder, written_last=WRITTEN_LAST)
    check_begins_or_continues(folder, checkpoint, recipe.to_yaml())
    if is_first:
        write_header(folder, recipe.to_yaml(), checkpoint)
        write_report(data, folder)

    def make(callback: TrainerCallback) -> TextBradleyTerry:
        model = load_reward_model(recipe.policy, tokenizer, seed=recipe.seed)
        if not recipe.policy.load_in_4bit:
            model.to(args.device)
        if recipe.policy.lora is not None:
            set_seed(recipe.seed)
            model = add_adapter(model, lora_config(recipe.policy.lora, "SEQ_CLS"))
        # In a mixture nothing but the last models is kept, and nothing is evaluated on the way.
        quiet = {} if recipe.mixture is None else {"save_strategy": "no", "eval_strategy": "no"}
        return TextBradleyTerry(model, tokenizer, lambda: build_config(RewardConfig, recipe, **quiet), [callback])

    if recipe.mixture is not None:
        return run_mixture(recipe, make, train_pairs, eval_pairs, console)
    component = make(RunFiles(folder, recipe.to_yaml()))
    trainer = component.trainer(train_pairs, eval_pairs)
    before = measure(component, eval_pairs)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    after = measure(component, eval_pairs)
    result = RunResult(folder=folder, model_folder=folder / "final", before=before, after=after)
    trainer.save_model(str(result.model_folder))
    if is_first:
        write_json(folder / "summary.json", {"before": before, "after": after})
        print_table(before, after, console)
        console.print(f"model: {result.model_folder}")
    Ranks(trainer.args.process_index, trainer.args.world_size).part()
    return result


def measure(component: TextBradleyTerry, pairs: Sequence[TextPair]) -> dict[str, float]:
    """Over all pairs alike; TRL's own averages over batches, so that a pair of the last short batch counts more."""
    if not pairs:
        return {}
    margins_N = component.margins(pairs)
    return {
        "accuracy": accuracy(margins_N),
        "loss, nats a pair": -float(log_sigmoid(margins_N).mean()),
        "margin": float(margins_N.mean()),
    }


def _pairs(name: str, encoded: tuple[EncodedRow, ...], console: Console) -> tuple[TextPair, ...]:
    if not encoded:
        return ()
    found: StrictPairs = strict_pairs(encoded)
    console.print(f"{name}: {found.summary()}")
    if not found.pairs:
        raise UserError(f"expected pairs with a winner in the {name} rows, found none in {len(encoded)} rows")
    return found.pairs
