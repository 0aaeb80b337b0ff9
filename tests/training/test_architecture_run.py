"""A network of spandrel the whole way: Ray Train, an interruption, the store, the endpoint."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from ray_sr.images import Photo, decode, encode
from ray_sr.publishing import publish_run
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.run import running_service
from ray_sr.store import Store, load_model
from ray_sr.training.launch import Interrupted, train
from ray_sr.training.monitor import Record
from ray_sr.training.runs import Run
from ray_sr.upscaling import Engine
from tests.photos import real_photos
from tests.training.test_launch import assert_same, final_state, recipe, shards

pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")
__all__ = ["shards"]  # a fixture


def test_it_is_trained_interrupted_resumed_bit_for_bit_published_and_served(shards: str, tmp_path: Path) -> None:
    network = "generator={kind: spandrel, architecture: SAFMN, options: {dim: 12, n_blocks: 1}}"
    wanted = recipe(
        *(network, "pretrain.steps=8", "gan.steps=4", "training.log_every=2", "validation.every=12"),
        *("data.batch=4", "training.checkpoint_every=12"),
    )
    whole, halted = (Run.at(tmp_path / name) for name in ("whole", "halted"))
    assert train(wanted, whole, shards=shards).step == 12
    stop = threading.Event()

    def stop_early(record: Record) -> None:
        if record["event"] == "train":
            stop.set()

    with pytest.raises(Interrupted):
        train(wanted, halted, shards=shards, listen=stop_early, stop=stop)
    assert final_state(halted)["step"] < 12
    assert train(wanted, halted, shards=shards, resume=True).step == 12
    assert_same(final_state(halted), final_state(whole))

    store = Store(tmp_path / "store")
    record = publish_run(halted, store)
    model = load_model(record.ref, store)
    assert model.network == wanted.network
    photo = Photo(real_photos()["astronaut"][100:132, 200:240])
    options = ServiceOptions(
        model=record.ref, store=store.root, device="cpu", precision="float32", cpus=0.5, codec_processes=1,
        jobs=str(tmp_path / "jobs"),
    )  # fmt: skip
    with running_service(options) as url:
        answer = httpx.post(f"{url}/v1/upscale", content=encode(photo, "png"), timeout=120)
    assert answer.status_code == 200, answer.text
    expected = Engine(model.module, model.capability, device="cpu", precision="float32").run(photo.pixels, np.uint8)
    assert np.abs(decode(answer.content).pixels.astype(int) - expected).max() <= 1
