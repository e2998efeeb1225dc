"""``alignment train`` for launchers: ``accelerate launch scripts/train.py RECIPE [key=value ...]``."""

import sys

from alignment.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
