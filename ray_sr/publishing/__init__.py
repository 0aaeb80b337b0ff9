"""A run for others: its report, and its generator in the model store."""

from ray_sr.publishing.publish import publish_run

__all__ = ["publish_run"]
