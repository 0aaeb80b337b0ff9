"""What the cluster can run at once, and whether a time is enough for one trial at all."""

from __future__ import annotations

import math
import time

import numpy as np
import ray
import torch

from ray_sr.cluster import capacity, task_cpus
from ray_sr.errors import RecipeError, ResourceError
from ray_sr.models import build_generator, count_parameters
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.room import require_room, worker_cpus
from ray_sr.tuning.space import Space
from ray_sr.tuning.trial_recipe import with_values

PROBES = 3


def gpus_of_trial(recipe: Recipe) -> float:
    """GPUs that the training of one trial takes, as `train` decides it."""
    training = recipe.training
    wanted = training.device == "gpu"
    taken = training.workers * training.gpus_per_worker
    there = capacity().get("GPU", 0) >= taken
    return taken if wanted or (training.device == "auto" and there) else 0


def trials_at_once(recipe: Recipe, asked: int | None = None) -> int:
    """How many trials run at once: each needs its workers and one CPU that makes crops.

    Raises ResourceError where `asked` is more than the cluster has room for.
    """
    training, have = recipe.training, capacity()
    room = int(have.get("CPU", 0) // (training.workers * worker_cpus(training) + task_cpus()))
    if gpus := gpus_of_trial(recipe):
        room = min(room, int(have.get("GPU", 0) // gpus))
    room = max(1, room)  # a cluster too small for one is refused by `train`, which says what is missing
    if asked is not None and asked > room:
        raise ResourceError(
            f"--concurrent {asked}: {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs have room for "
            f"{room} at once (each takes {training.workers} worker(s) of {training.cpus_per_worker:g} CPUs, "
            f"{gpus:g} GPUs and a CPU for crops)"
        )
    return asked or room


def parameters_of(recipe: Recipe) -> int:
    """Parameters of the recipe's generator, buffers included; builds no weights."""
    with torch.device("meta"):
        return count_parameters(build_generator(recipe.network))["parameters"]


def check_budget(space: Space, recipe: Recipe) -> None:
    """Refuse a time that is not enough for the cheapest trial, by the generator's passes alone.

    Those are timed where a worker would run. Raises RecipeError, and ResourceError where none could run.
    """
    if space.budget.gpu_hours is not None and not gpus_of_trial(recipe):
        raise RecipeError("budget.gpu_hours: these trials use no GPU, give budget.time (--time 2h)")
    gpus = gpus_of_trial(recipe) or 1
    limits = [space.budget.time, space.budget.gpu_hours and space.budget.gpu_hours * 3600 / gpus]
    seconds = min((limit for limit in limits if limit), default=None)
    if seconds is None:
        return
    cheapest = _cheapest(space, recipe)
    training = cheapest.training
    require_room(training)
    gpu = min(1, gpus_of_trial(cheapest))
    probe = ray.remote(num_cpus=training.cpus_per_worker, num_gpus=gpu)(_step_seconds)
    needed = ray.get(probe.remote(cheapest.dump(), "cuda" if gpu else "cpu")) * cheapest.total_steps
    if needed > seconds:
        raise RecipeError(
            f"a budget of {seconds:.0f} s is not enough for one trial: {cheapest.total_steps} steps of the "
            f"smallest network take {needed:.0f} s in the generator alone; raise the time or lower the steps"
        )


def _cheapest(space: Space, recipe: Recipe) -> Recipe:
    """The recipe with the least work among the planned ones, or the space's ends where none is planned."""
    if space.searcher == "optuna":
        several = [{name: v} for name, domain in space.fields.items() for v in domain.extremes()]
    else:
        several = space.plan()
    recipes = [with_values(recipe, values) for values in several]
    return min(recipes, key=lambda found: parameters_of(found) * found.total_steps * _pixels(found))


def _pixels(recipe: Recipe) -> int:
    return recipe.data.batch * recipe.data.crop**2


def _step_seconds(data: dict, where: str) -> float:
    """Seconds of a forward and a backward pass of the generator of one worker, over all its parts of a batch.

    On "cuda" or "cpu" as the trial would run: a process that was given no GPU may see one all the same.
    """
    recipe = Recipe.model_validate(data)
    training = recipe.training
    torch.set_num_threads(training.threads or max(1, math.floor(training.cpus_per_worker)))
    device = torch.device(where)
    generator = build_generator(recipe.network).to(device)
    side = recipe.data.crop // recipe.scale
    lr = torch.rand(max(1, recipe.data.batch // recipe.rows_per_step), 3, side, side, device=device)
    seconds = []
    for _ in range(PROBES):
        began = time.perf_counter()
        generator(lr).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return float(np.min(seconds)) * training.accumulate
