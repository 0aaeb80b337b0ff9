"""`ray-sr`: the command line. Thin: each command imports what it needs when it runs.

Exit codes: 0 done; 1 unexpected; 2 usage or recipe; 3 some input missing or unreadable (the rest is
done); 4 resources (memory, disk, devices, permissions); 5 checkpoint or model does not fit; 6 cluster or
server; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import click

from ray_sr import __version__
from ray_sr.commands.bench import bench
from ray_sr.commands.data import data
from ray_sr.commands.doctor import doctor
from ray_sr.commands.evaluate import evaluate
from ray_sr.commands.models import models
from ray_sr.commands.process import end_by_exception, open_standard_streams
from ray_sr.commands.recipes import recipes
from ray_sr.commands.serve import keys, serve
from ray_sr.commands.submit import submit
from ray_sr.commands.train import demo, report, train
from ray_sr.commands.tune import tune
from ray_sr.commands.upscale import upscale
from ray_sr.errors import RaySRError, ResourceError, printable, visible


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ray-sr")
@click.option("-v", "--verbose", is_flag=True, help="Show the logs of Ray and its workers.")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
def cli(verbose: bool, debug: bool) -> None:
    """Train and serve image super-resolution and deblurring GANs on Ray.

    photographs -> `data prepare` -> shards -> `train` -> run -> `models publish` -> model
    -> `upscale`, `serve`
    """


_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_OF_THE_SYSTEM = (*_OUT_OF_SPACE, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE)
_COMMANDS = (
    doctor,
    recipes,
    data,
    train,
    report,
    evaluate,
    models,
    upscale,
    serve,
    keys,
    tune,
    submit,
    bench,
    demo,
)
for command in _COMMANDS:
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a documented code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    open_standard_streams()
    end_by_exception()
    try:
        code = _run(arguments, debug) if _has_folder() else ResourceError.exit_code
    except OSError:  # stderr takes nothing more: the code alone can tell
        code = ResourceError.exit_code
    sys.exit(code)


def _has_folder() -> bool:
    """Whether the current folder is there: libraries end the process without it, or fail in their own words."""
    try:
        os.getcwd()
    except OSError as error:
        click.echo(f"error: the current folder is gone ({error.strerror}): change to another one", err=True)
        return False
    return True


def _run(arguments: list[str], debug: bool) -> int:
    try:
        result = cli.main(args=arguments, prog_name="ray-sr", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except RaySRError as error:
        if debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            click.echo(f"error: {visible(line)}", err=True)
        return error.exit_code
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        if debug:
            traceback.print_exc()
        return _refused_by_system(error)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _unexpected(error)


def _refused_by_system(error: OSError) -> int:
    """No room, no permission or no descriptors: nothing of that is a defect, wherever it is met."""
    if error.errno not in _OF_THE_SYSTEM:
        return _unexpected(error)
    if error.errno in _OUT_OF_SPACE and error.filename is None:
        _drop_output()
        click.echo(f"error: the result cannot be written to stdout: {error.strerror}", err=True)
    else:
        place = "" if error.filename is None else f"{printable(error.filename)}: "
        click.echo(f"error: {place}{error.strerror}", err=True)
    return ResourceError.exit_code


def _unexpected(error: Exception) -> int:
    text = str(error).splitlines()
    click.echo(f"error: unexpected {type(error).__name__}: {visible(text[0]) if text else ''}", err=True)
    click.echo("this is a defect of ray-sr: --debug shows where", err=True)
    return 1


def _drop_output() -> None:
    """Of what is left for stdout, which takes no more: the end of the interpreter would fail on it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
