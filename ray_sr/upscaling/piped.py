"""One photo from stdin or to stdout (`-`): bytes in, bytes out, on the way that files go."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import BinaryIO

from ray_sr.errors import InputError, RecipeError, ResourceError
from ray_sr.upscaling.engine import Engine
from ray_sr.upscaling.files import FileOptions, upscale_files
from ray_sr.upscaling.naming import ENDINGS
from ray_sr.upscaling.results import FileResult, Summary
from ray_sr.upscaling.target_size import TargetSize

PIPE = "-"


def check_piped(inputs: Sequence[str], output: str | None, options: FileOptions) -> None:
    """Raises RecipeError where `-` cannot be what is meant."""
    if len(inputs) != 1:
        raise RecipeError("`-` stands for one photo: give no other, and not a folder or pattern")
    if inputs[0] == PIPE and output is None:
        raise RecipeError("a photo from stdin has no folder for its result: name one with -o, or -o - for stdout")
    if output == PIPE and options.compare:
        raise RecipeError("--compare writes a second picture, which has no place on stdout: name a file with -o")


def upscale_piped(
    source: str,
    output: str | None,
    engine: Engine,
    *,
    stdin: BinaryIO,
    stdout: BinaryIO,
    wanted: TargetSize | None = None,
    options: FileOptions | None = None,
    dry_run: bool = False,
) -> Summary:
    """Upscales one photo; `-` is stdin for `source`, stdout for `output`. On stdout comes the picture alone.

    A result for stdout is png where the options name no format. Nothing is written on stderr. Raises
    InputError where stdin is empty; all else is in the summary.
    """
    options = options or FileOptions()
    if output == PIPE:  # what comes on stdout lies in no folder
        options = replace(options, mark=False)
    with tempfile.TemporaryDirectory(prefix="ray-sr-") as name:
        folder = Path(name)
        photo = _received(stdin, folder, options) if source == PIPE else Path(source)
        target = folder / f"result{ENDINGS[options.format or 'png']}" if output == PIPE else output
        summary = upscale_files(
            [photo], target, engine, wanted=wanted, options=options, dry_run=dry_run, quiet=True, stream=StringIO()
        )
        shown = tuple(_shown(file, source, output) for file in summary.files)
        if not summary.exit_code and output == PIPE and not dry_run:
            assert isinstance(target, Path)
            _send(target, stdout)
    return replace(summary, files=shown)


def _received(stdin: BinaryIO, folder: Path, options: FileOptions) -> Path:
    """What stdin gives, in a file; never more than the limit of a photo."""
    data = stdin.read(options.limits.max_bytes + 1)
    if not data:
        raise InputError("stdin: there is no photo on it")
    path = folder / "stdin"
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return path


def _send(result: Path, stdout: BinaryIO) -> None:
    with open(result, "rb") as file:
        shutil.copyfileobj(file, stdout, 1 << 20)
    stdout.flush()


def _shown(file: FileResult, source: str, output: str | None) -> FileResult:
    """The result as the user named it."""
    return replace(
        file,
        source="stdin" if source == PIPE else file.source,
        target="stdout" if output == PIPE else file.target,
    )
