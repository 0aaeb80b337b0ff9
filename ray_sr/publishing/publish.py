"""Run -> model store: the averaged generator with its recipe, metrics and provenance."""

from __future__ import annotations

import io
import math
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from PIL import Image

from ray_sr.evaluation import Evaluation, evaluate
from ray_sr.evaluation.evaluate import OnImage
from ray_sr.models.weights import halved, load_strict
from ray_sr.publishing.training_curves import draw_training
from ray_sr.store import Metrics, Model, ModelRecord, Provenance, Store, load_model
from ray_sr.training.runs import Run


def publish_run(
    run: Run,
    store: Store,
    *,
    name: str | None = None,
    stage: str = "last",
    promote: str | None = None,
    measure_on: Sequence[str] = (),
    pictures_of: str | None = None,
    notes: str | None = None,
    source: str | None = None,
    half: bool = False,
    progress: OnImage | None = None,
) -> ModelRecord:
    """Publish the last checkpoint's generator under the recipe's name.

    `stage` pretrain takes the one from before the GAN stage, best the one of the highest PSNR-Y in the last stage.
    The validation of its step is published with it, its curves, and its figures on the photos of `measure_on`:
    HR folders, or HR,LR where LR is not to be made. Pictures are of the photos in `pictures_of` (written like
    that), else of those that gain most and least in each folder. `notes` go into the card, `source` in place of
    the run's folder. `half` stores float16, which is what is measured then.
    progress: called with (done, total, name) after each photo that is measured.
    Raises InputError where the run has no checkpoint, ModelError and ResourceError as the store does.
    """
    weights = run.generator(stage)
    recipe = run.recipe()
    model = load_model(weights)
    assert model.network
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    if half:
        load_strict(model.module, halved(state), str(weights))
    metrics, pictures = _measured(model, measure_on, progress, draw=pictures_of is None)
    if pictures_of is not None:
        pictures = _pictures(model, pictures_of, progress)
    if curves := draw_training(run):
        pictures["training.png"] = curves
    name = name or (f"{recipe.name}-pretrain" if stage == "pretrain" else recipe.name)
    version = store.publish(
        name,
        state,
        model.network,
        recipe=recipe,
        metrics=[*_validation(run, stage), *metrics],
        provenance=Provenance(
            data_manifest=run.facts().get("data_digest"),
            parent=recipe.init,
            source=source or run.place,
            steps=_steps(run, stage),
        ),
        pictures=pictures,
        notes=notes,
        half=half,
        promote=promote,
    )
    return store.show(f"{name}@{version}")


def _measured(
    model: Model, places: Sequence[str], progress: OnImage | None, draw: bool
) -> tuple[list[Metrics], dict[str, bytes]]:
    """Figures on each folder, bicubic's beside them, and pictures by name."""
    metrics: list[Metrics] = []
    pictures: dict[str, bytes] = {}
    for place in places:
        test_set = _name_of(place)
        with tempfile.TemporaryDirectory() as temporary:
            found = evaluate(model, *_folders(place), pictures=temporary if draw else None, progress=progress)
            gains = {image.name: image.figures["psnr_y"] - image.baseline["psnr_y"] for image in found.images}
            shown = dict.fromkeys([max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)])
            pictures |= _drawn(found, shown if draw else (), test_set)
        bicubic = {f"{found.baseline_name}_{name}": value for name, value in found.bicubic.items()}
        values = {name: value for name, value in {**found.mean, **bicubic}.items() if math.isfinite(value)}
        metrics.append(Metrics(protocol=f"{test_set}, {len(found.images)} photos: {found.protocol}", values=values))
    return metrics, pictures


def _pictures(model: Model, place: str, progress: OnImage | None) -> dict[str, bytes]:
    """Of every photo there."""
    with tempfile.TemporaryDirectory() as temporary:
        found = evaluate(model, *_folders(place), pictures=temporary, progress=progress)
        return _drawn(found, found.pictures, _name_of(place))


def _drawn(found: Evaluation, names: Iterable[str], test_set: str) -> dict[str, bytes]:
    """The side-by-side pictures of these photos, by the names that they get in the card."""
    drawn = {}
    for name in names:
        file = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{test_set}-{PurePath(name).stem}.jpg")
        drawn[file.lstrip("-._")] = _as_jpeg(found.pictures[name])
    return drawn


def _folders(place: str) -> tuple[str, str | None]:
    """HR, and LR where it is given."""
    hr, _, lr = place.partition(",")
    return hr, lr or None


def _name_of(place: str) -> str:
    """Of a test set: Set5 for Set5/HR, or for Set5/HR,FOLDER."""
    path = PurePath(_folders(place)[0])
    return path.parent.name if path.name.upper() == "HR" and path.parent.name else path.name


def _as_jpeg(picture: Path) -> bytes:
    buffer = io.BytesIO()
    Image.open(picture).convert("RGB").save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


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
