"""Ray: connected to, told of preemption, and sent jobs."""

from ray_sr.cluster.connect import (
    CAPACITY,
    available_cpus,
    capacity,
    connect,
    disconnect,
    is_one_node,
    local_ray,
    missing_here,
    not_shared,
    require_shared,
    task_cpus,
    telling_of_starvation,
    use_token,
)

__all__ = [
    "CAPACITY",
    "available_cpus",
    "capacity",
    "connect",
    "disconnect",
    "is_one_node",
    "local_ray",
    "missing_here",
    "not_shared",
    "require_shared",
    "task_cpus",
    "telling_of_starvation",
    "use_token",
]
