"""``alignment judge`` for launchers: ``accelerate launch scripts/judge.py RECIPE [key=value ...]``."""

import sys

from alignment.cli import main

if __name__ == "__main__":
    main(["judge", *sys.argv[1:]])
