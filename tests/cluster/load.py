"""Sends a small photo to the service again and again and notes each status code, or `none` where nobody answered.

python -m tests.cluster.load URL FILE
"""

from __future__ import annotations

import io
import sys
import time
import urllib.error
import urllib.request

from PIL import Image

PAUSE = 0.1


def main(url: str, file: str) -> None:
    photo = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((32, 32)).save(photo, "PNG")
    request = urllib.request.Request(f"{url}/v1/upscale", data=photo.getvalue(), method="POST")
    request.add_header("Content-Type", "image/png")
    with open(file, "a", buffering=1, encoding="ascii") as codes:
        while True:
            codes.write(f"{status(request)}\n")
            time.sleep(PAUSE)


def status(request: urllib.request.Request) -> str:
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except OSError:
        return "none"


if __name__ == "__main__":
    main(*sys.argv[1:])
