"""``python -m alignment`` is the ``alignment`` command."""

from alignment.cli import main

main()
