"""From serving configurations and load requests to plans and batching policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from enginehouse_inference.batching.policy import QueuePolicy, TimeoutAction
from enginehouse_inference.models.batching import Batching, QueueDefaults, Queueing
from enginehouse_inference.models.load_request import plan_from_load
from enginehouse_inference.models.plan import Loading, VersionPlan, plan_from_config

from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import serving_pb2


def test_a_configuration_says_everything() -> None:
    config = serving_pb2.ServingConfig(
        name="projects/default/servingConfigs/resnet", latest_versions=2, instances=3, warmup_batch_sizes=[4]
    )
    for version in (1, 3, 2):
        config.versions.add(version=version, engine=f"projects/default/engines/e{version}")
    config.options["b"], config.options["a"] = "2", "1"
    config.batching.max_batch_size = 16
    config.batching.max_queue_delay.FromMicroseconds(500)
    config.batching.preferred_batch_sizes.extend([8, 4, 8])
    config.batching.queue_timeout.FromSeconds(1)
    plan = plan_from_config(config)
    assert plan.name == "resnet"
    assert plan.versions == (
        VersionPlan(3, "projects/default/engines/e3"),
        VersionPlan(2, "projects/default/engines/e2"),
    )
    assert plan.loading == Loading(instances=3, warmup=(4,), options=(("a", "1"), ("b", "2")))
    assert plan.batching == Batching(16, 500_000, (4, 8), Queueing(0, 1_000_000_000))


def test_an_empty_configuration_means_the_defaults() -> None:
    config = serving_pb2.ServingConfig(name="projects/default/servingConfigs/m")
    config.versions.add(version=1, engine="e1")
    config.versions.add(version=2, engine="e2")
    plan = plan_from_config(config)
    assert [v.version for v in plan.versions] == [2]
    assert plan.loading == Loading(1, None, ())
    policy = plan.batching.policy(True, 8, QueueDefaults(77))
    assert (policy.max_batch_size, policy.join, policy.queue.max_queue_size) == (8, True, 77)
    assert (policy.max_queue_delay_ns, policy.queue.queue_timeout_ns, policy.levels) == (0, None, ())


@pytest.mark.parametrize(
    ("configured", "batched", "engine", "expected", "join"),
    [
        (0, True, 8, 8, True),
        (4, True, 8, 4, True),
        (32, True, 8, 8, True),
        (1, True, 8, 8, False),
        (0, True, 1, 1, False),
        (0, False, 0, 1, False),
        (16, True, 0, 16, True),
    ],
)
def test_the_batch_limit(configured: int, batched: bool, engine: int, expected: int, join: bool) -> None:
    policy = Batching(max_batch_size=configured).policy(batched, engine, QueueDefaults())
    assert (policy.max_batch_size, policy.join) == (expected, join)


def test_preferred_sizes_beyond_the_limit_mean_nothing() -> None:
    assert Batching(preferred_batch_sizes=(4, 16)).policy(True, 8, QueueDefaults()).preferred_batch_sizes == (4,)


def test_the_profile_is_preferred_where_batches_wait_for_a_size_and_none_is_named() -> None:
    def preferred(**configured: Any) -> tuple[int, ...]:
        return Batching(**configured).policy(True, 64, QueueDefaults(), optimal=32).preferred_batch_sizes

    assert preferred(max_queue_delay_ns=5) == (32,)
    assert preferred() == ()
    assert preferred(max_queue_delay_ns=5, preferred_batch_sizes=(8,)) == (8,)
    assert preferred(max_queue_delay_ns=5, max_batch_size=16) == ()


def test_levels_are_silent_where_the_model_speaks() -> None:
    config = serving_pb2.ServingConfig(name="projects/default/servingConfigs/m")
    config.versions.add(version=1, engine="e1")
    batching = config.batching
    batching.priority_levels, batching.max_queue_size, batching.allow_timeout_override = 3, 50, False
    batching.timeout_action, batching.device_share, batching.response_cache_bytes = (
        serving_pb2.TIMEOUT_ACTION_DELAY,
        2,
        9,
    )
    batching.queue_timeout.FromMilliseconds(4)
    first = batching.priority_queues.add(
        priority_level=1, max_queue_size=5, timeout_action=serving_pb2.TIMEOUT_ACTION_REJECT
    )
    first.queue_timeout.FromMilliseconds(2)
    plan = plan_from_config(config)
    policy = plan.batching.policy(True, 8, QueueDefaults())
    usual = QueuePolicy(50, 4_000_000, TimeoutAction.DELAY, allow_timeout_override=False)
    assert policy.levels == (
        QueuePolicy(5, 2_000_000, TimeoutAction.REJECT, allow_timeout_override=False),
        usual,
        usual,
    )
    assert (policy.queue, policy.default_level) == (usual, 3)
    assert (plan.batching.device_share, plan.batching.response_cache_bytes) == (2, 9)
    loaded = plan_from_load(
        "m",
        json.dumps(
            {
                "engine_directory": "/e",
                "max_queue_size": 50,
                "queue_timeout_us": 4000,
                "timeout_action": "delay",
                "allow_timeout_override": False,
                "priority_levels": 3,
                "priority_queues": {"1": {"max_queue_size": 5, "queue_timeout_us": 2000, "timeout_action": "reject"}},
                "device_share": 2,
                "response_cache_bytes": 9,
            }
        ),
    )
    assert loaded.batching == plan.batching


def test_a_load_request() -> None:
    text = json.dumps({"engine_directory": "/e", "version": 7, "max_queue_delay_us": 5, "options": {"threads": 2}})
    plan = plan_from_load("m", text)
    assert plan.versions == (VersionPlan(7, directory=Path("/e")),)
    assert plan.batching.max_queue_delay_ns == 5000
    assert plan.loading.options == (("threads", "2"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "list"),
        ("{", "not JSON"),
        ("{}", "no engine_directory"),
        ('{"engine_directory": "/e", "instances": -1}', "bad instances"),
        ('{"engine_directory": "/e", "instances": true}', "bad instances"),
        ('{"engine_directory": "/e", "version": 1.5}', "bad version"),
        ('{"engine_directory": "/e", "preferred_batch_sizes": [0]}', "bad preferred_batch_sizes"),
        ('{"engine_directory": "", "typo": 1}', "engine_directory"),
    ],
)
def test_bad_load_requests_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        plan_from_load("m", text)
