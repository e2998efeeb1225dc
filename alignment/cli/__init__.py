"""The command line: parse, call, print. Every import that costs time stands inside the command that needs it.

A command joins the application where its module is imported; the help shows them in that order.
"""

from alignment.cli import training, models, evaluation, games, recipes  # noqa: I001
from alignment.cli.app import app, main

__all__ = ["app", "evaluation", "games", "main", "models", "recipes", "training"]
