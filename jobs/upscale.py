"""Upscaling on a cluster: the options of `ray-sr upscale`.

ray job submit --working-dir . -- python jobs/upscale.py FOLDER -o OUT
"""

from __future__ import annotations

import sys

from ray_sr.cli import main

if __name__ == "__main__":
    main(["upscale", *sys.argv[1:]])
