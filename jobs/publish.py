"""Publishing on a cluster: the options of `ray-sr models publish`.

ray job submit --working-dir . -- python jobs/publish.py RUN --promote best
"""

from __future__ import annotations

import sys

from ray_sr.cli import main

if __name__ == "__main__":
    main(["models", "publish", *sys.argv[1:]])
