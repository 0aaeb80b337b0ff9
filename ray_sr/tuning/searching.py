"""Who says what is tried next: a list made beforehand (random, grid), or Optuna's TPE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from ray_sr.errors import ResourceError
from ray_sr.tuning.folder import SweepFolder
from ray_sr.tuning.space import Domain, Space, Values


@dataclass(frozen=True)
class Planned:
    """A trial that is still to be trained, or to be trained further."""

    number: int
    values: Values


@dataclass(frozen=True)
class Known:
    """A finished trial of an earlier session, for searchers that learn."""

    values: Values
    objective: float


def trial_config(sweep: SweepFolder, trial: Planned) -> dict[str, Any]:
    """What `TrialRun` is given."""
    return {"sweep": str(sweep.path), "trial": trial.number, "values": trial.values}


class ListSearch(Searcher):
    """Proposes the trials of a list, until the sweep is asked to stop."""

    def __init__(self, sweep: SweepFolder, trials: Sequence[Planned]) -> None:
        super().__init__()
        self._sweep, self._waiting = sweep, list(trials)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self._sweep.stop_file.exists() or not self._waiting:
            return Searcher.FINISHED
        return trial_config(self._sweep, self._waiting.pop(0))

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """A list learns nothing."""

    def save(self, checkpoint_path: str) -> None:
        waiting = [trial.number for trial in self._waiting]
        Path(checkpoint_path).write_text(json.dumps(waiting), encoding="utf-8")


class OptunaTrials(Searcher):
    """Proposes what Optuna's TPE takes for promising, after `first`, the trials that were interrupted."""

    def __init__(
        self, sweep: SweepFolder, space: Space, first: Sequence[Planned], known: Sequence[Known], new: Sequence[int]
    ) -> None:
        """`new` are the numbers of trials that are not begun yet. ResourceError where Optuna is not installed."""
        metric = space.objective.metric
        super().__init__(metric=metric, mode="max")
        self._sweep, self._fields = sweep, space.fields
        self._numbers = [*(trial.number for trial in first), *new]
        self._inner = _optuna(space, [self._encode(trial.values) for trial in first], metric)
        for trial in known:
            self._inner.add_evaluated_point(self._encode(trial.values), trial.objective)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self._sweep.stop_file.exists() or not self._numbers:
            return Searcher.FINISHED
        proposed = self._inner.suggest(trial_id)
        values = {name: self._decode(domain, proposed[name]) for name, domain in self._fields.items()}
        return trial_config(self._sweep, Planned(self._numbers.pop(0), values))

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self._inner.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        self._inner.save(checkpoint_path)

    def _encode(self, values: Values) -> Values:
        """Optuna's categories are plain values; ours may be lists, so it is given their positions."""
        return {
            name: value if self._fields[name].is_range else self._fields[name].values.index(value)
            for name, value in values.items()
        }

    @staticmethod
    def _decode(domain: Domain, value: Any) -> Any:
        if not domain.is_range:
            return domain.values[int(value)]
        return int(value) if domain.kind == "int" else domain.tidy(float(value))


def _optuna(space: Space, first: list[Values], metric: str) -> Any:
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise ResourceError("searcher optuna needs a package: pip install 'ray-sr[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(domain, optuna.distributions) for name, domain in space.fields.items()}
    return OptunaSearch(distributions, metric=metric, mode="max", points_to_evaluate=first, seed=space.seed)


def _distribution(domain: Domain, kinds: Any) -> Any:
    if not domain.is_range:
        return kinds.CategoricalDistribution(range(len(domain.values)))
    low, high = domain.values
    if domain.kind == "int":
        return kinds.IntDistribution(low, high)
    return kinds.FloatDistribution(low, high, log=domain.kind == "loguniform")
