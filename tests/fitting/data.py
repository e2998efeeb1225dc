"""Small data files on which a tiny model learns in a second, and recipes that read them."""

import json
from collections.abc import Iterable
from pathlib import Path

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "red", "blue", "green", "cat"]
WORDS += ["dog", "sun", "moon", "tree"]

RECIPE = """
policy: {{tiny: {{vocab_size: 300, hidden_size: 32, num_heads: 2}}}}
data:
  {key}: {{path: {path}}}
  eval_fraction: 0.2
  max_prompt_length: 48
  max_completion_length: 24
training: {{learning_rate: 3e-3, per_device_train_batch_size: 8, num_train_epochs: 3, logging_steps: 4,
           save_strategy: "no", disable_tqdm: true}}
output_dir: {output}
"""


def write(folder: Path, rows: Iterable[dict], *, key: str = "preferences", name: str = "rows.jsonl") -> Path:
    """The rows as a file, and a recipe that reads it; the recipe's path."""
    data = folder / name
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(key=key, path=data, output=folder / "run"))
    return recipe


def separable_pairs() -> list[dict]:
    """One word more wins: the reward of a text is what its last words are."""
    return [
        {"prompt": f"Say {a} and {b}.", "chosen": f"{a}, {b}.", "rejected": f"I would rather not say {a} now"}
        for a in WORDS
        for b in WORDS[:4]
    ]


def annotated_pairs(*, num_annotators: int, num_pairs: int, is_split: bool) -> list[dict]:
    """Annotators who prefer the brief answer; where they are split, the last two of each four prefer the long one."""
    rows = []
    for h in range(num_annotators):
        likes_long = is_split and h % 4 >= 2
        for n in range(num_pairs):
            a, b = WORDS[(5 * h + n) % len(WORDS)], WORDS[(n * 7 + h) % len(WORDS)]
            answers = [f"{a}, {b}.", f"I would rather not say {a} now"]
            chosen, rejected = answers[::-1] if likes_long else answers
            rows.append(
                {
                    "prompt": f"Say {a} and {b}, {h} {n}.",
                    "chosen": chosen,
                    "rejected": rejected,
                    "annotator": f"annotator {h}",
                    "group": "long" if likes_long else "brief",
                }
            )
    return rows
