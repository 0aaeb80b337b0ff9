"""Photographs to shards on a cluster: the options of `ray-sr data prepare`.

ray job submit --working-dir . -- python jobs/prepare_data.py s3://bucket/photos -o s3://bucket/shards
"""

from __future__ import annotations

import sys

from ray_sr.cli import main

if __name__ == "__main__":
    main(["data", "prepare", *sys.argv[1:]])
