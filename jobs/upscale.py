"""Upscaling of an archive on a cluster: the options of `ray-sr upscale --ray`.

ray job submit --working-dir . -- python jobs/upscale.py s3://bucket/photos -o s3://bucket/large
"""

from __future__ import annotations

import sys

from ray_sr.cli import main

if __name__ == "__main__":
    main(["upscale", "--ray", *sys.argv[1:]])
