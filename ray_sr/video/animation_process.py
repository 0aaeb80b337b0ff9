"""A decoder process for animated GIF, WebP and PNG, by Pillow.

    python -m ray_sr.video.animation_process

The task comes on stdin as one message; answers go to stdout: first `facts`, then each frame as it is shown, RGBA.
"""

from __future__ import annotations

import base64
import os
import resource
import warnings
from fractions import Fraction
from typing import Any, BinaryIO

from PIL import Image

from ray_sr.video.messages import receive, send

_BASE_MEMORY = 2 << 30
_MEMORY_PER_PIXEL = 64
_MOST_FRAMES = 1 << 20
_LONGEST_MS = 65535 * 1000


class AnimationError(Exception):
    """Why an animation cannot be taken, in words for its owner."""


def frames(task: dict[str, Any], answers: BinaryIO) -> None:
    """Answers with facts and frames: head `time` (its number) and `ms`, a fraction; body H×W×4."""
    Image.MAX_IMAGE_PIXELS = None  # the limit below is ours
    try:
        image = Image.open(task["path"], formats=("GIF", "WEBP", "PNG"))
    except OSError as error:
        raise AnimationError(f"cannot be opened as an animation ({_words(error)})") from None
    with image:
        width, height = image.size
        if width * height > task["max_pixels"] or max(width, height) > task["max_side"]:
            raise AnimationError(f"{width}x{height} is over the limit of {task['max_pixels']} pixels a frame")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_BASE_MEMORY + _MEMORY_PER_PIXEL * width * height, hard))
        count = _count(image)
        first = int(bool(image.info.get("default_image")))  # of an APNG: for programs that show no animation
        send(answers, {"facts": _facts(image, count - first)})
        for number in range(first, count):
            try:
                image.seek(number)
                image.load()
                pixels = image.convert("RGBA").tobytes()
            except (OSError, ValueError, EOFError, IndexError, SyntaxError) as error:
                if task["strict"] or number == first:
                    told = f"is damaged in frame {number + 1} of {count} ({_words(error)})"
                    raise AnimationError(f"{told}: --lenient takes what comes before") from None
                send(answers, {"lost": count - number})
                break
            head = {"time": number - first, "ms": str(_duration(image))}
            send(answers, head, pixels)
    send(answers, {"end": True})


def _count(image: Image.Image) -> int:
    try:
        count = int(getattr(image, "n_frames", 1))
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise AnimationError(f"is damaged ({_words(error)})") from None
    if count > _MOST_FRAMES:
        raise AnimationError(f"has {count} frames, more than {_MOST_FRAMES}")
    return count


def _facts(image: Image.Image, count: int) -> dict[str, Any]:
    """plays: how often it is shown, 0 for ever. GIF counts repetitions, and has none where it says nothing."""
    loop = image.info.get("loop")
    repeats = 1 if image.format == "GIF" else 0
    plays = repeats if loop is None else int(loop) + (repeats if loop else 0)
    icc = image.info.get("icc_profile") or b""
    return {
        "width": image.width,
        "height": image.height,
        "frames": count,
        "plays": plays,
        "icc": base64.b64encode(icc).decode(),
    }


def _duration(image: Image.Image) -> Fraction:
    """Milliseconds. Pillow divides what the file has; its denominators have 16 bits."""
    value = image.info.get("duration") or 0
    seconds = Fraction(float(value)).limit_denominator(1 << 16) / 1000
    if isinstance(value, float):
        seconds = Fraction(value / 1000).limit_denominator(65535)
    return min(Fraction(_LONGEST_MS), max(Fraction(0), seconds * 1000))


def _words(error: BaseException) -> str:
    line = (str(error) or type(error).__name__).splitlines()[0][:200]
    return line if line.isprintable() else ascii(line)


def main() -> None:
    """Does the task on stdin; whatever else is printed goes to stderr."""
    source, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    warnings.simplefilter("ignore")
    task, _ = receive(source)
    try:
        frames(task, answers)
    except AnimationError as error:
        send(answers, {"error": "clip", "detail": str(error)})
    except MemoryError:
        send(answers, {"error": "clip", "detail": "takes more memory to decode than frames of its size should"})
    except BrokenPipeError:  # nobody wants more
        return
    except Exception as error:  # whatever a file can do to a decoder ends here
        send(answers, {"error": "clip", "detail": f"cannot be decoded ({type(error).__name__}: {_words(error)})"})


if __name__ == "__main__":
    main()
