"""What benchmarks.soak tells of memory: a leak as its slope, and the processes that stayed."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.soak import slopes


def test_a_leak_is_told_in_bytes_a_request() -> None:
    noise = np.random.default_rng(3)
    course = []
    for requests in range(500, 10_500, 500):
        warm = 5_000_000 * min(1.0, requests / 3000)  # what is set up once is no leak
        memory = {
            "Ingress 1": 100_000_000 + warm + 700 * requests + noise.normal(0, 20_000),
            "Generator 2": 300_000_000 + warm + noise.normal(0, 20_000),
            ("codecs" if requests < 8000 else "other 3"): 1e6,
        }
        course.append((requests, {name: int(taken) for name, taken in memory.items()}))
    found = slopes(course)
    assert found.keys() == {"Ingress 1", "Generator 2"}
    assert found["Ingress 1"]["bytes a request"] == pytest.approx(700, abs=30)
    assert found["Generator 2"]["bytes a request"] == pytest.approx(0, abs=30)
    assert found["Ingress 1"]["MiB at the end"] == pytest.approx((105_000_000 + 7_000_000) / 2**20, abs=0.2)
