"""``alignment rollout`` for launchers: ``accelerate launch scripts/rollout.py RECIPE [key=value ...]``."""

import sys

from alignment.cli import main

if __name__ == "__main__":
    main(["rollout", *sys.argv[1:]])
