"""How much each searched field goes with the objective: a plain rank correlation, called by that name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from ray_sr.tuning.results import Outcome, Results

FEWEST_TRIALS = 3


@dataclass(frozen=True)
class Importance:
    """How a field goes with the objective, over trials at the same step.

    For numbers Spearman's rank correlation (-1 to 1: the sign says whether more is better or worse); for other
    choices the correlation ratio of the ranks (0 to 1, `is_ratio`). None where a value never varied.
    Association in a handful of trials, not effect: fields that happened to vary together cannot be told apart.
    """

    field: str
    value: float | None
    is_ratio: bool


def common_step(results: Results) -> int:
    """The last step that all trials with a validation have reached: there they can be compared."""
    return min((o.course[-1][0] for o in results.ranked if o.course), default=0)


def importances(results: Results) -> list[Importance]:
    """Of every field, the strongest first; empty with fewer than 3 trials."""
    step = common_step(results)
    compared = [(o, value) for o in results.ranked if (value := o.reached(step)) is not None]
    if len(compared) < FEWEST_TRIALS:
        return []
    objectives = [value for _, value in compared]
    found = [_importance(name, [o for o, _ in compared], objectives, results) for name in results.space.fields]
    return sorted(found, key=lambda importance: -abs(importance.value or 0.0))


def _importance(
    name: str, outcomes: Sequence[Outcome], objectives: Sequence[float], results: Results
) -> Importance:
    values = [outcome.values[name] for outcome in outcomes]
    ranks = rankdata(objectives)
    if results.space.fields[name].is_numeric:
        return Importance(name, _correlation(values, objectives), False)
    return Importance(name, _correlation_ratio(values, ranks), True)


def _correlation(values: Sequence[float], objectives: Sequence[float]) -> float | None:
    if min(values) == max(values) or min(objectives) == max(objectives):
        return None
    return float(spearmanr(values, objectives).statistic)


def _correlation_ratio(groups: Sequence[Any], ranks: np.ndarray) -> float | None:
    """Root of the share of the ranks' variance that lies between the groups."""
    labels = [repr(group) for group in groups]
    if len(set(labels)) < 2 or not ranks.std():
        return None
    means = {label: ranks[[other == label for other in labels]].mean() for label in labels}
    between = np.var([means[label] for label in labels])
    return float(np.sqrt(between / ranks.var()))
