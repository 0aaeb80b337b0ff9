"""Ray: connected to, told of preemption, and sent jobs."""

from ray_sr.cluster.connect import (
    CAPACITY,
    capacity,
    connect,
    disconnect,
    is_one_node,
    local_ray,
    missing_here,
    not_shared,
    require_shared,
    use_token,
)

__all__ = [
    "CAPACITY",
    "capacity",
    "connect",
    "disconnect",
    "is_one_node",
    "local_ray",
    "missing_here",
    "not_shared",
    "require_shared",
    "use_token",
]
