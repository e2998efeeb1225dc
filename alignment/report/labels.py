"""What the metrics of a run are called, and in which order they stand."""

from collections.abc import Iterable, Mapping

# Metrics by name, in the order in which a table shows them.
LABELS: Mapping[str, str] = {
    "exact_gap": "duality gap, exact",
    "exact_win_rate": "win rate against the reference, exact",
    "exact_win_rate_worst": "win rate of the worst group, exact",
    "exact_kl_to_ref": "KL to the reference, exact, nats",
    "exact_outside": "probability of texts that are no answers",
    "win_rate_vs_ref": "win rate against the reference",
    "win_rate_vs_ref_worst": "win rate by the member that gives the lowest",
    "kl_to_ref": "KL to the reference, nats",
    "loss": "loss",
    "accuracy": "accuracy, relative to the reference",
    "accuracy_absolute": "accuracy, absolute: chosen likelier",
    "margin": "margin, nats",
    "chosen_logps": "log-prob of chosen, nats",
    "rejected_logps": "log-prob of rejected, nats",
    "undesirable": "share of pairs in the undesirable set",
    "undesirable_per_token": "the same, per token",
    "target_attainment": "regression target attained",
    "learning_rate": "learning rate",
    "grad_norm": "norm of the gradient",
}
# Rates of one group, or by one member of a panel.
_RATES = {"exact_win_rate": "win rate of {}, exact", "win_rate_vs_ref": "win rate by {}"}
_COUNTS = ("iteration", "epoch", "runtime", "win_rate_num_prompts")
# What a line of the log says of the whole run.
TOTALS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")


def in_order(names: Iterable[str]) -> list[str]:
    """Names worth a row, those with a label first; ends of intervals belong to their rates."""
    places = {name: place for place, name in enumerate(LABELS)}
    worth = [name for name in names if name not in _COUNTS and not name.endswith(("_low", "_high", "_per_second"))]
    # A group's rate stands below that of all.
    family = {name: next((base for base in _RATES if name.startswith(f"{base}_")), name) for name in worth}
    return sorted(worth, key=lambda name: places.get(name, places.get(family[name], len(places))))


def label_of(name: str) -> str:
    """What a page calls a metric.

    Example:
        >>> label_of("win_rate_vs_ref_minority"), label_of("empty_responses")
        ('win rate by minority', 'empty responses')
    """
    if name in LABELS:
        return LABELS[name]
    for prefix, text in _RATES.items():
        if name.startswith(f"{prefix}_"):
            return text.format(name.removeprefix(f"{prefix}_"))
    return name.replace("_", " ")
