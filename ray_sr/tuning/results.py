"""What a sweep found: every trial's figures from its run folder, their ranking, Pareto front and the best one."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_sr.recipes.reader import recipe_yaml
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.monitor import Record
from ray_sr.tuning.budget import parameters_of
from ray_sr.tuning.folder import SweepFolder, TrialFolder
from ray_sr.tuning.space import Objective, Space, Values
from ray_sr.tuning.trial_recipe import with_values

SHOWN = {"running": "unfinished", "stopped": "stopped early", "done": "done", "failed": "failed"}


@dataclass(frozen=True)
class Outcome:
    """One trial: its values, how it ended, and what it reached.

    `work`: equal in trials whose steps compute the same; `steps_per_s` is the median over these.
    """

    number: int
    values: Values
    status: str
    reason: str | None
    step: int
    steps: int
    metrics: dict[str, float]
    course: tuple[tuple[int, float], ...]
    parameters: int
    work: str
    steps_per_s: float | None
    seconds: float
    objective: float | None
    rank: int | None = None
    on_front: bool = False

    @property
    def shown_status(self) -> str:
        return SHOWN[self.status]

    def reached(self, step: int) -> float | None:
        """The objective at the last validation up to this step."""
        return next((value for at, value in reversed(self.course) if at <= step), None)


@dataclass(frozen=True)
class Results:
    """A sweep's trials, the best first; those that reached nothing last."""

    space: Space
    outcomes: list[Outcome]
    best: Outcome | None
    bicubic: float | None

    @property
    def ranked(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.rank is not None]

    @property
    def failed(self) -> list[Outcome]:
        return sorted((o for o in self.outcomes if o.status == "failed"), key=lambda o: o.number)

    @property
    def front(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.on_front]


def read_results(sweep: SweepFolder) -> Results:
    """The results of a sweep as far as it is."""
    space, recipe = sweep.space(), sweep.recipe()
    found = [outcome for trial in sweep.trials() if (outcome := _outcome(trial, recipe, space.objective.metric))]
    found = _with_common_speed(found)
    front = {o.number for o in pareto_front([o for o in found if o.objective is not None])}
    found.sort(key=lambda o: (o.objective is None, -(o.objective or 0.0), o.number))
    outcomes = [
        replace(o, rank=place if o.objective is not None else None, on_front=o.number in front)
        for place, o in enumerate(found, 1)
    ]
    return Results(space, outcomes, best_of(outcomes, space.objective), _bicubic(sweep, space.objective.metric))


def pareto_front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no other one beats in objective, parameters (fewer) and steps/s without being worse in any."""

    def axes(o: Outcome) -> tuple[float, float, float]:
        return (o.objective or 0.0, -o.parameters, o.steps_per_s or 0.0)

    def beats(a: Outcome, b: Outcome) -> bool:
        pairs = list(zip(axes(a), axes(b), strict=True))
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return [o for o in outcomes if not any(beats(other, o) for other in outcomes)]


def best_of(outcomes: Iterable[Outcome], objective: Objective) -> Outcome | None:
    """The best trial: of those within the tolerance of the highest objective, the one that is preferred.

    Only trials that went to their last step count, unless there are none.
    """
    candidates = [o for o in outcomes if o.objective is not None and o.status != "failed"]
    candidates = [o for o in candidates if o.status == "done"] or candidates
    if not candidates:
        return None
    highest = max(o.objective or 0.0 for o in candidates)
    equal = [o for o in candidates if (o.objective or 0.0) >= highest - objective.tolerance]
    if objective.prefer == "speed":
        return max(equal, key=lambda o: (o.steps_per_s or 0.0, o.objective or 0.0))
    return min(equal, key=lambda o: (o.parameters, -(o.objective or 0.0)))


def why_best(results: Results) -> str:
    """One sentence that says how the best trial was chosen."""
    best, objective = results.best, results.space.objective
    if best is None or best.objective is None:
        return "no trial reached a validation"
    what = f"trial {best.number}: {best.objective:.2f} dB after {best.step} steps, {best.parameters:,} parameters"
    highest = next((o for o in results.ranked if o.status in ("done", best.status)), best)
    if highest.number == best.number or highest.objective is None:
        return f"{what}; the highest of {len(results.ranked)} trials"
    trade = "parameters" if objective.prefer == "parameters" else "steps/s"
    return (
        f"{what}; within {objective.tolerance:g} dB of trial {highest.number} ({highest.objective:.2f} dB, "
        f"{highest.parameters:,} parameters) and better in {trade}"
    )


def best_recipe(sweep: SweepFolder, best: Outcome) -> str:
    """YAML that `ray-sr train` runs as it is: the sweep's recipe with the best trial's values and the shards."""
    recipe = with_values(sweep.recipe(), best.values | {"data.shards": sweep.card().shards})
    lines = [
        f"# Trial {best.number} of the sweep {sweep.path.name}: {best.objective:.2f} dB after {best.step} steps.",
        *(f"# {name} = {_cell(value)}" for name, value in best.values.items()),
    ]
    if sweep.space().scheduler.kind == "pbt":
        lines.append("# The last values of a schedule: the trial began with others, so training anew may differ.")
    return "\n".join([*lines, recipe_yaml(recipe)])


def _with_common_speed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Trials that compute the same get the median of their speeds: else noise decides who is on the front."""
    rates: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.steps_per_s is not None:
            rates.setdefault(outcome.work, []).append(outcome.steps_per_s)
    medians = {work: statistics.median(found) for work, found in rates.items()}
    return [replace(outcome, steps_per_s=medians.get(outcome.work)) for outcome in outcomes]


# ------------------------------------------------------------------------------------------------ tables


def rows(results: Results) -> list[dict[str, Any]]:
    """One flat row for each trial, as CSV and Parquet have it."""
    return [
        {
            "rank": o.rank,
            "trial": o.number,
            "status": o.shown_status,
            results.space.objective.metric: o.objective,
            "bicubic": results.bicubic,
            "step": o.step,
            "steps": o.steps,
            "parameters": o.parameters,
            "steps_per_s": o.steps_per_s,
            "seconds": round(o.seconds, 1),
            "pareto": o.on_front,
            "best": results.best is not None and o.number == results.best.number,
            **{name: value if _is_plain(value) else json.dumps(value) for name, value in o.values.items()},
            "reason": o.reason,
        }
        for o in results.outcomes
    ]


def csv_table(results: Results) -> str:
    found = rows(results)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(found[0]) if found else ["rank"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def parquet_table(results: Results) -> bytes:
    sink = pa.BufferOutputStream()
    columns = {name: [row[name] for row in rows(results)] for name in (rows(results) or [{}])[0]}
    pq.write_table(pa.table({name: _column(values) for name, values in columns.items()}), sink)
    return sink.getvalue().to_pybytes()


def text_table(results: Results) -> str:
    """For a terminal: the best first, `*` on the Pareto front of PSNR, parameters and speed."""
    names = short_names(list(results.space.fields))
    head = ["rank", "trial", "PSNR", "parameters", "steps/s", "step", *names.values(), "status"]
    lines = [head]
    for o in results.outcomes:
        psnr = "-" if o.objective is None else f"{o.objective:.2f}{'*' if o.on_front else ' '}"
        speed = "-" if o.steps_per_s is None else f"{o.steps_per_s:.2f}"
        cells = [str(o.rank or "-"), str(o.number), psnr, f"{o.parameters:,}", speed, f"{o.step}/{o.steps}"]
        lines.append([*cells, *(_cell(o.values[name]) for name in names), o.shown_status])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = [_line(line, widths) for line in lines]
    note = "* no other trial is better in PSNR, parameters or steps/s without being worse in another"
    return "\n".join([*table, note]) if results.front else "\n".join(table)


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """The last parts of the dotted names, as many as tell them apart."""
    found = {}
    for name in fields:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            short = ".".join(parts[-count:])
            if sum(other.split(".")[-count:] == parts[-count:] for other in fields) == 1:
                break
        found[name] = short
    return found


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    right = [cell.rjust(width) for cell, width in zip(cells[:-1], widths, strict=False)]
    return "  ".join([*right, cells[-1]]).rstrip()


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a choice among values of several types
        return pa.array([None if value is None else str(value) for value in values])


# ------------------------------------------------------------------------------------------- one trial


def _outcome(trial: TrialFolder, recipe: Recipe, metric: str) -> Outcome | None:
    card = trial.card()
    if card is None:
        return None
    own = with_values(recipe, card.values)
    validations, steps = trial.run.records("validation"), trial.run.records("train")
    metrics = {k: v for k, v in validations[-1].items() if isinstance(v, float)} if validations else {}
    rates = [record["steps_per_s"] for record in steps[1:] or steps]
    return Outcome(
        number=card.number,
        values=card.values,
        status=card.status,
        reason=card.reason,
        step=max((record["step"] for record in [*validations, *steps]), default=0),
        steps=own.total_steps,
        metrics=metrics,
        course=tuple((record["step"], record[metric]) for record in validations if math.isfinite(record[metric])),
        parameters=parameters_of(own),
        work=json.dumps([own.generator.model_dump(), own.dump()["discriminator"], own.data.model_dump()]),
        steps_per_s=statistics.median(rates) if rates else None,
        seconds=_seconds(steps),
        objective=metrics[metric] if math.isfinite(metrics.get(metric, math.nan)) else None,
    )


def _seconds(records: Sequence[Record]) -> float:
    """Time spent in training steps."""
    total, before = 0.0, 0
    for record in records:
        total += max(0, record["step"] - before) / record["steps_per_s"]
        before = record["step"]
    return total


def _bicubic(sweep: SweepFolder, metric: str) -> float | None:
    for trial in sweep.trials():
        if validations := trial.run.records("validation"):
            return float(validations[-1][f"bicubic_{metric}"])
    return None
