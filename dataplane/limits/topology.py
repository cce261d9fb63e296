"""How counters are spread over Redis servers, and where those under a hash tag are.

`single`: all under one hash tag, so that each request is one atomic step; one server, the primary
that sentinels name, or the one shard of a Cluster that serves the tag.

`org`: those of each organization under the tag of its bucket, those that organizations share under
the tag of `single`. Each tag is atomic and has its clock, its counter epoch and its leases.
"""

from collections.abc import Callable

from dataplane.limits.cluster import ClusterNodes
from dataplane.limits.redis_urls import RedisMode, read_redis_url
from dataplane.limits.sentinel import SentinelTarget
from dataplane.limits.target import FixedTarget, Target

TargetOf = Callable[[str], Target]


def targets_at(redis_url: str, mode: RedisMode) -> TargetOf:
    """Return what tells where the counters under a hash tag are; nobody is asked yet.

    Raises:
        ValueError: The URL cannot be understood.
    """
    url = read_redis_url(redis_url)
    if url.primary_name:
        primary = SentinelTarget(url)
        return lambda _: primary
    if url.is_cluster or (mode is RedisMode.ORG and url.addresses):
        return ClusterNodes(url).target
    fixed = FixedTarget(redis_url)
    return lambda _: fixed
