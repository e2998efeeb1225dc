"""Which columns of an unusual file are probably ours: what an error proposes, and nothing that is ever applied."""

import re
from collections.abc import Iterable, Sequence

from alignment.values import close_name

_SYNONYMS = {
    "prompt": ("instruction", "question", "query", "problem", "input", "conversations", "messages", "turns", "context"),
    "chosen": ("preferred", "accepted", "winner", "win", "better", "good", "positive", "chosen_response"),
    "rejected": ("dispreferred", "refused", "loser", "lose", "worse", "bad", "negative", "rejected_response"),
    "responses": ("completions", "candidates", "outputs", "answers", "generations", "replies"),
    "scores": ("score", "ratings", "rating", "rewards", "reward", "judge"),
    "completion": ("response", "output", "answer", "reply"),
    "label": ("winner", "verdict", "choice", "vote", "preference", "better"),
    "weight": ("weights",),
    "annotator": ("annotator_id", "worker", "worker_id", "rater", "user_id"),
    "group": ("group_id",),
}
# response1 and response2, output_1 and output_2, answer_a and answer_b.
_NUMBERED = re.compile(r"(response|output|answer|completion|conversation|candidate|reply|text)s?[_-]?([12ab])", re.I)
_ANNOTATOR = re.compile(r"(annotator|rater|worker|label|vote|judge)[_-]?\d+", re.I)


def propose_columns(found: Iterable[str]) -> dict[str, str | list[str]]:
    """Our names -> the names in a file whose columns are these; empty where nothing looks alike.

    Example:
        >>> propose_columns(["question", "answer_a", "answer_b", "winner"])
        {'prompt': 'question', 'responses': ['answer_a', 'answer_b'], 'label': 'winner'}
    """
    names = list(found)
    proposal: dict[str, str | list[str]] = {}
    if {"instruction", "input"} <= set(names):
        proposal["prompt"] = ["instruction", "input"]
    elif prompt := propose_column("prompt", names):
        proposal["prompt"] = prompt
    sides = {name: one for name in ("chosen", "rejected") if (one := propose_column(name, names))}
    replies = [name for name in names if _NUMBERED.fullmatch(name)]
    if len(replies) == 2:
        proposal["responses"] = replies
    elif len(sides) == 2:
        return proposal | sides
    elif responses := propose_column("responses", names):
        proposal["responses"] = responses
    annotators = [name for name in names if _ANNOTATOR.fullmatch(name)]
    label = annotators if len(annotators) > 1 else propose_column("label", names)
    if label and len(replies) == 2:
        proposal["label"] = label
    return proposal


def propose_column(name: str, found: Sequence[str]) -> str | None:
    """The column that is probably meant by our ``name``: itself, another word for it, or the nearest spelling."""
    if name in found:
        return name
    by_word = next((word for word in _SYNONYMS.get(name, ()) if word in found), None)
    return by_word or close_name(name, found)


def as_yaml(columns: dict[str, str | list[str]]) -> str:
    """A mapping as it stands in a recipe.

    Example:
        >>> as_yaml({"prompt": ["instruction", "input"], "label": "winner"})
        'columns: {prompt: [instruction, input], label: winner}'
    """
    entries = (
        f"{ours}: {name if isinstance(name, str) else '[' + ', '.join(name) + ']'}" for ours, name in columns.items()
    )
    return f"columns: {{{', '.join(entries)}}}"
