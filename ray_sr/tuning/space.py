"""Search spaces: which fields of a recipe are tried over which values, by whom, and for how long. YAML in, checked.

fields:
  gan.generator_optimizer.lr: {loguniform: [1e-5, 1e-3]}
  generator.blocks: {choice: [4, 8, 16]}
searcher: random
scheduler: {kind: asha, grace: 300}
budget: {trials: 8, time: 15m}
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ray_sr.errors import InputError
from ray_sr.recipes.reader import did_you_mean, parse_section
from ray_sr.recipes.section import Section

DomainKind = Literal["loguniform", "uniform", "int", "choice", "grid"]
KINDS: tuple[str, ...] = get_args(DomainKind)
Values = dict[str, Any]
DEFAULT_TRIALS = 8
MOST_TRIALS = 10_000
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: object) -> float:
    """Seconds in 90, "90s", "15m", "2h" or "1h30m". Raises ValueError for anything else and for nothing."""
    parts = re.findall(r"(\d+\.?\d*)\s*([smhd])", str(text))
    if "".join(number + unit for number, unit in parts) == re.sub(r"\s", "", str(text)) and parts:
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    elif isinstance(text, (int, float)) or re.fullmatch(r"\d+\.?\d*", str(text)):
        seconds = float(str(text))
    else:
        raise ValueError(f"{text!r} is no time: write 90s, 15m, 2h or 1h30m")
    if not 0 < seconds < math.inf:
        raise ValueError(f"a time of {text} is no budget: write 90s, 15m, 2h or 1h30m")
    return seconds


# ----------------------------------------------------------------------------------------------- domains


class Domain(Section):
    """The values one field may take. YAML `{loguniform: [low, high]}`, `{choice: [a, b]}`, and so on.

    loguniform, uniform: floats of 4 significant digits. int: whole numbers, both ends included. choice: one of
    these at random. grid: all of these in turn, so that each is tried equally often.
    """

    kind: DomainKind
    values: tuple[Any, ...]

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, data: Any) -> Any:
        if isinstance(data, dict) and set(data) == {"kind", "values"}:
            return data
        if not isinstance(data, dict) or len(data) != 1:
            raise ValueError(f"write one of {', '.join(KINDS)}, such as {{loguniform: [1e-5, 1e-3]}}")
        kind, values = next(iter(data.items()))
        if kind not in KINDS:
            raise ValueError(f"no kind of range {kind!r}{did_you_mean(str(kind), KINDS)} ({', '.join(KINDS)})")
        if not isinstance(values, list) or not values:
            raise ValueError(f"{kind} takes a list of values in brackets, not {values!r}")
        return {"kind": kind, "values": [_as_number(value) for value in values]}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind in ("choice", "grid"):
            if any(value in self.values[:index] for index, value in enumerate(self.values)):
                raise ValueError(f"{self.kind} names a value twice: {_listed(self.values)}")
            return self
        number = int if self.kind == "int" else (int, float)
        if len(self.values) != 2 or not all(type(v) is not bool and isinstance(v, number) for v in self.values):
            kind = "whole numbers" if self.kind == "int" else "numbers"
            raise ValueError(f"{self.kind} is [low, high] in {kind}, not {_listed(self.values)}")
        low, high = self.values
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{self.kind} needs finite ends, not {_listed(self.values)}")
        if low >= high:
            raise ValueError(f"the range {_listed(self.values)} is empty: write [low, high] with low < high")
        if self.kind == "loguniform" and low <= 0:
            raise ValueError(f"loguniform begins above 0, not at {low:g}: raise it, or use uniform")
        return self

    @property
    def is_range(self) -> bool:
        return self.kind in ("loguniform", "uniform", "int")

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)

    def sample(self, rng: np.random.Generator) -> Any:
        if not self.is_range:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "int":
            return int(rng.integers(low, high + 1))
        if self.kind == "uniform":
            return self.tidy(float(rng.uniform(low, high)))
        return self.tidy(math.exp(rng.uniform(math.log(low), math.log(high))))

    def tidy(self, value: float) -> float:
        """The value within the range, in 4 significant digits: recipes are read by people, too."""
        low, high = self.values
        return min(max(float(f"{value:.4g}"), float(low)), float(high))

    def extremes(self) -> tuple[Any, ...]:
        """The values that show whether all are possible: both ends of a range, every value of a list."""
        return self.values

    def dump(self) -> dict[str, Any]:
        """As YAML writes it."""
        return {self.kind: list(self.values)}


def _as_number(value: Any) -> Any:
    """YAML 1.1 takes 1e-4 for a string."""
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _listed(values: Sequence[Any]) -> str:
    return f"[{', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)}]"


# ------------------------------------------------------------------------------------------------- space


class Objective(Section):
    """What makes a trial better, and what it is traded against."""

    metric: Literal["psnr_y", "psnr_rgb"] = Field("psnr_y", description="of the held-out photos; highest wins")
    tolerance: float = Field(
        0.05, ge=0, description="dB below the highest that still count as equal; among equals `prefer` decides"
    )
    prefer: Literal["parameters", "speed"] = Field(
        "parameters", description="among equals: fewer parameters, or more training steps/s"
    )


class SchedulerSpec(Section):
    """Who stops or changes trials before their last step."""

    kind: Literal["none", "asha", "pbt"] = Field(
        "none",
        description="asha: stops the worse trials early (arXiv 1810.05934); pbt: the worse ones take over the "
        "state of better ones and go on with changed learning rates (arXiv 1711.09846)",
    )
    grace: int | None = Field(None, ge=1, description="asha: steps before the first decision")
    reduction: float = Field(3.0, ge=1.5, description="asha: one of this many goes on at each decision")
    interval: int | None = Field(None, ge=1, description="pbt: steps between changes")

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind != "asha" and (self.grace is not None or "reduction" in self.model_fields_set):
            raise ValueError(f"grace and reduction belong to asha, not to {self.kind}")
        if self.kind != "pbt" and self.interval is not None:
            raise ValueError(f"interval belongs to pbt, not to {self.kind}")
        return self


class Budget(Section):
    """When a sweep ends; whichever comes first."""

    trials: int | None = Field(None, ge=1, le=MOST_TRIALS, description=f"by default {DEFAULT_TRIALS}; grid: all")
    time: Annotated[float, BeforeValidator(parse_duration)] | None = Field(
        None, description="of the whole sweep: 90s, 15m, 2h"
    )
    gpu_hours: float | None = Field(None, gt=0, description="GPUs in use times hours")


class Space(Section):
    """A sweep: the fields that are searched, and how."""

    fields: dict[str, Domain] = Field(min_length=1, description="recipe fields by dotted name")
    searcher: Literal["random", "grid", "optuna"] = Field(
        "random", description="random; grid: every combination; optuna: TPE, learns from finished trials"
    )
    scheduler: SchedulerSpec = SchedulerSpec()
    objective: Objective = Objective()
    budget: Budget = Budget()
    seed: int = Field(0, ge=0, description="seed of the sampling; each trial's own seed is the recipe's")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("scheduler"), str):
            return {**data, "scheduler": {"kind": data["scheduler"]}}
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        ranges = [name for name, domain in self.fields.items() if domain.is_range]
        if self.searcher == "grid":
            if ranges:
                raise ValueError(f"searcher grid tries every combination: {ranges[0]} needs choice or grid")
            size = self._count(list(self.fields))
            if size > MOST_TRIALS:
                raise ValueError(
                    f"the grid has {size:,} combinations, at most {MOST_TRIALS:,} are tried: take fewer"
                )
            if self.budget.trials is not None and self.budget.trials < size:
                raise ValueError(
                    f"the grid has {size} combinations, budget.trials is {self.budget.trials}: leave it out, "
                    "or take searcher random"
                )
        if self.scheduler.kind == "pbt":
            self._check_pbt()
        return self

    def _check_pbt(self) -> None:
        if self.searcher != "random":
            raise ValueError(f"pbt changes the values itself: take searcher random, not {self.searcher}")
        for name, domain in self.fields.items():
            if not name.startswith(("pretrain.", "gan.")) or domain.kind not in ("uniform", "loguniform"):
                raise ValueError(
                    f"pbt changes values while weights are kept: {name} cannot be searched by it, only "
                    "uniform and loguniform ranges inside pretrain and gan (learning rates, loss weights)"
                )
        if self.trials < 2:
            raise ValueError("pbt needs a population: budget.trials 4 or more")

    @property
    def trials(self) -> int:
        """How many trials there are at most."""
        if self.searcher == "grid":
            return self._count(list(self.fields))
        return self.budget.trials or DEFAULT_TRIALS

    def plan(self) -> list[Values]:
        """The values of every trial of a random or grid search; a longer plan begins with a shorter one."""
        if self.searcher == "grid":
            return [self._combination(list(self.fields), index) for index in range(self.trials)]
        in_turn = [name for name, domain in self.fields.items() if domain.kind == "grid"]
        rng = np.random.default_rng(self.seed)
        plans = []
        for index in range(self.trials):
            drawn = {name: domain.sample(rng) for name, domain in self.fields.items() if domain.kind != "grid"}
            drawn |= self._combination(in_turn, index)
            plans.append({name: drawn[name] for name in self.fields})
        return plans

    def _count(self, names: Sequence[str]) -> int:
        return math.prod(len(self.fields[name].values) for name in names)

    def _combination(self, names: Sequence[str], index: int) -> Values:
        """One of all combinations, which come round again: the last field changes first."""
        found = {}
        for name in reversed(names):
            values = self.fields[name].values
            index, place = divmod(index, len(values))
            found[name] = values[place]
        return {name: found[name] for name in names}

    def dump(self) -> dict[str, Any]:
        """Plain dict that `Space.model_validate` reads back."""
        data = self.model_dump(mode="json", exclude_unset=True)
        return data | {"fields": {name: domain.dump() for name, domain in self.fields.items()}}


# ----------------------------------------------------------------------------------------------- reading


def read_space(path: str | Path, *, trials: int | None = None, seconds: float | None = None) -> Space:
    """The space in a YAML file, with the budget of the command line in place of its own.

    Raises InputError where the file cannot be read and RecipeError, one line for each error, where it is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"space {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    return parse_space(text, trials=trials, seconds=seconds, source=str(path))


def parse_space(
    text: str, *, trials: int | None = None, seconds: float | None = None, source: str = "space"
) -> Space:
    """The space written in this YAML text; `source` names it in errors."""
    given = [("trials", trials), ("time", seconds)]
    options = {f"budget.{name}={value}": f"option --{name}" for name, value in given if value is not None}
    return parse_section(Space, text, list(options), source=source, what="a space", options=options)
