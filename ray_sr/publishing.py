"""Run -> model store: the averaged generator with its recipe, metrics and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_sr.model_card import Metrics, ModelRecord, Provenance
from ray_sr.model_store import Store
from ray_sr.models.weights import load_weights
from ray_sr.training.runs import Run


def publish_run(
    run: Run,
    store: Store,
    *,
    name: str | None = None,
    stage: str = "last",
    promote: str | None = None,
    metrics: Sequence[Metrics] = (),
    pictures: Mapping[str, bytes] | None = None,
) -> ModelRecord:
    """Publish the last checkpoint's generator under the recipe's name.

    `stage` pretrain takes the one from before the GAN stage, best the one of the highest PSNR-Y in the last stage.
    The validation of its step is published with it, beside `metrics` of other test sets.
    Raises InputError where the run has no checkpoint, ModelError and ResourceError as the store does.
    """
    weights = run.generator(stage)
    network, state = load_weights(weights)
    recipe = run.recipe()
    name = name or (f"{recipe.name}-pretrain" if stage == "pretrain" else recipe.name)
    version = store.publish(
        name,
        state,
        network,
        recipe=recipe,
        metrics=[*_validation(run, stage), *metrics],
        provenance=Provenance(
            data_manifest=run.facts().get("data_digest"),
            parent=recipe.init,
            source=run.place,
            steps=_steps(run, stage),
        ),
        pictures=pictures,
        promote=promote,
    )
    return store.show(f"{name}@{version}")


def _steps(run: Run, stage: str) -> int | None:
    if stage == "best":
        return int(run.generator("best").stem.split("-")[1])
    steps = [r["step"] for r in run.records("train") if stage == "last" or r["stage"] == stage]
    return max(steps, default=None)


def _validation(run: Run, stage: str) -> list[Metrics]:
    last = _steps(run, stage)
    records = [r for r in run.records("validation") if last is not None and r["step"] <= last]
    if not records:
        return []
    values = {key: value for key, value in records[-1].items() if isinstance(value, float)}
    border = run.recipe().scale
    text = f"held-out photos of the training data, whole; 8 bit; border {border} px cropped; Y = BT.601"
    return [Metrics(protocol=text, values=values)]
