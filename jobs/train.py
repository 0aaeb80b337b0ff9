"""Training on a cluster: the options of `ray-sr train`.

ray job submit --working-dir . -- python jobs/train.py -c srgan-paper-x4 --data SHARDS -o RUN
"""

from __future__ import annotations

import sys

from ray_sr.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
