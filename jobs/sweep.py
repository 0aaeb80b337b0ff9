"""A sweep on a cluster: the options of `ray-sr tune`.

ray job submit --working-dir . -- python jobs/sweep.py -c keras-gan-x2 -s tune/rates-and-blocks.yaml \
    --data SHARDS -o SWEEP
"""

from __future__ import annotations

import sys

from ray_sr.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
