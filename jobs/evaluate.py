"""Evaluation on a cluster: the options of `ray-sr evaluate`.

ray job submit --working-dir . -- python jobs/evaluate.py best --hr FOLDER
"""

from __future__ import annotations

import sys

from ray_sr.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
