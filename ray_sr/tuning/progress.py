"""What is seen of a sweep while it goes on: a line for each validation and each end, and a bar of trials."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from ray_sr.progress import Progress
from ray_sr.tuning.folder import TrialCard
from ray_sr.tuning.results import short_names
from ray_sr.tuning.space import Space, Values


class SweepProgress:
    """Shows a sweep on stderr. Use as a context manager."""

    def __init__(self, name: str, space: Space, trials: int, *, done: int = 0, quiet: bool = False) -> None:
        self._names, self.metric = short_names(list(space.fields)), space.objective.metric
        self._bar = Progress(name, trials, "trials", quiet=quiet, start=done)
        self._best: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        self._bar.say(text)

    def began(self, card: TrialCard) -> None:
        self.say(f"trial {card.number}: {self._values(card.values)}")

    def changed(self, card: TrialCard) -> None:
        self.say(f"trial {card.number}: goes on with {self._values(card.values)}")

    def known(self, number: int, objective: float) -> None:
        """A value that counts for the best so far without being news."""
        if self._best is None or objective > self._best[0]:
            self._best = (objective, number)

    def validated(self, card: TrialCard, steps: int, result: dict[str, Any]) -> None:
        value = result[self.metric]
        before = self._best
        self.known(card.number, value)
        best = "the best so far" if self._best != before else f"best {self._best_text()}"
        self.say(f"trial {card.number}: step {result['step']:.0f}/{steps}, PSNR {value:.2f} dB ({best})")

    def ended(self, card: TrialCard, step: int) -> None:
        match card.status:
            case "failed":
                text = f"failed: {card.reason}"
            case "stopped":
                text = f"stopped early at step {step}"
            case "done":
                text = f"done at step {step}"
            case _:
                text = f"interrupted at step {step}, its checkpoint is saved"
        self.say(f"trial {card.number}: {text}")
        if card.status != "running":
            self._bar.advance(f"best {self._best_text()}" if self._best else "")

    def _best_text(self) -> str:
        return f"{self._best[0]:.2f} by trial {self._best[1]}" if self._best else "-"

    def _values(self, values: Values) -> str:
        return ", ".join(
            f"{short} {f'{values[name]:.4g}' if isinstance(values[name], float) else values[name]}"
            for name, short in self._names.items()
        )
