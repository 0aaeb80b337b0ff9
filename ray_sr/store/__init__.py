"""The model store: published generators with their recipe, metrics and provenance, and channels that name them."""

from ray_sr.store.load import load_model
from ray_sr.store.records import Channel, ChannelEvent, Metrics, ModelRecord, Provenance
from ray_sr.store.store import BUILT_IN, Model, Store

__all__ = [
    "BUILT_IN",
    "Channel",
    "ChannelEvent",
    "Metrics",
    "Model",
    "ModelRecord",
    "Provenance",
    "Store",
    "load_model",
]
