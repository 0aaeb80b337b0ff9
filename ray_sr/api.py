"""What the command line does, for Python: `import ray_sr` offers these functions; docs/python.md uses them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray_sr.cluster import connect
from ray_sr.evaluation import Evaluation
from ray_sr.evaluation import evaluate as evaluate_model
from ray_sr.images import Photo, read_photo
from ray_sr.recipes import Recipe, load_recipe
from ray_sr.storage import resolve_location
from ray_sr.store import Model, Store, load_model
from ray_sr.training.launch import Trained
from ray_sr.training.launch import train as launch
from ray_sr.training.runs import Run, generator_of_run
from ray_sr.upscaling import Engine, upscale_photo
from ray_sr.upscaling.engine import Precision

AnyPath = str | os.PathLike[str]


def upscale(
    photo: Photo | AnyPath,
    model: Model | str = "best",
    *,
    scale: float | None = None,
    store: Store | AnyPath | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    tile: int | None = None,
) -> Photo:
    """The photo, or the photo in that file, enlarged `scale` times, by default as much as the model does.

    `model`: what `load_model` gives, or what it takes. For many photos load it once. Depth, transparency, colour
    profile and metadata are kept. `tile`: side of the tiles in pixels, by default what fits in memory.
    Raises InputError (photo, scale), ModelError, RecipeError (device, tile) and ResourceError (memory, store).
    """
    loaded = _loaded(model, store)
    engine = Engine(loaded.module, loaded.capability, device=device, precision=precision, tile=tile)
    return upscale_photo(photo if isinstance(photo, Photo) else read_photo(Path(photo)), engine, scale=scale)


def evaluate(
    model: Model | str,
    hr: AnyPath,
    lr: AnyPath | None = None,
    *,
    scale: int = 4,
    store: Store | AnyPath | None = None,
    pictures: AnyPath | None = None,
    limit: int | None = None,
    device: str = "auto",
) -> Evaluation:
    """PSNR, SSIM and sharpness of a model on the photos in the folder `hr`, bicubic beside it.

    `model`: as for `upscale`, a run's folder, or "bicubic" with a `scale`. Low-resolution photos are made by
    MATLAB's bicubic, or taken from `lr`. `pictures`: a folder for side-by-side pictures. `limit`: so many photos
    at most. Raises InputError, RecipeError, ModelError and ResourceError.
    """
    return evaluate_model(_loaded(model, store, scale), hr, lr, pictures=pictures, limit=limit, device=device)


def read_recipe(name_or_file: AnyPath, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of this name (`ray-sr recipes list`) or YAML file, with overrides such as "data.batch=32".

    Raises RecipeError, with one line for each thing that is wrong in it, and InputError where there is none.
    """
    return load_recipe(os.fspath(name_or_file), overrides)


def train(
    recipe: Recipe | AnyPath,
    shards: AnyPath | None = None,
    output: AnyPath = "run",
    *,
    resume: bool = False,
    listen: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Trained:
    """Train a recipe on the shards of `ray-sr data prepare` into the run folder `output`.

    It joins the Ray of RAY_ADDRESS, or the one that runs in this process, or starts one on this machine. `listen`
    hears every line of the journal as it comes (steps, validations). `resume` goes on from the last checkpoint.
    Raises RecipeError, InputError, ResourceError, ModelError, ClusterError, and launch.Interrupted after Ctrl-C,
    when a checkpoint is saved.
    """
    checked = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    connect()
    # Workers have current folders of their own, so relative names are resolved here.
    place = None if shards is None else resolve_location(shards)
    return launch(checked, Run.at(resolve_location(output)), shards=place, resume=resume, listen=listen)


def _loaded(model: Model | str, store: Store | AnyPath | None, scale: int = 4) -> Model:
    if isinstance(model, Model):
        return model
    place = store if store is None or isinstance(store, Store) else os.fspath(store)
    return load_model(generator_of_run(model) or model, place, scale=scale)
