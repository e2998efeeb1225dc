"""EGPO on the text game from Python, as in a notebook: python recipes/quickstart/python_api.py (a minute on one core).

A trainer takes models, rows, a tokenizer and an oracle as objects: a model of transformers, rows of
`alignment.data.read_rows`, anything with `prefer(prompts, left, right)`.
"""

from alignment.arguments import AlignmentArguments
from alignment.textgame import ExactFigures, shared_game
from alignment.trainers import EGPOTrainer

text = shared_game()
exact = ExactFigures(text, tau=0.04)
trainer = EGPOTrainer(
    model=text.policy(),
    ref_model=text.ref,
    args=AlignmentArguments(
        output_dir="runs/quickstart/python_api",
        max_steps=30,
        per_device_train_batch_size=30,
        num_completions=8,
        opponent_completions=8,
        max_new_tokens=20,
        learning_rate=2e-3,
        save_strategy="no",
    ),
    train_dataset=text.rows(),
    processing_class=text.tokenizer,
    oracle=text.oracle(),
    method_options={"tau": 0.04},
)
before = exact(trainer.model)
trainer.train()
after = exact(trainer.model)
for name, value in after.items():
    print(f"{name:<24} {before[name]:.4f} -> {value:.4f}")
