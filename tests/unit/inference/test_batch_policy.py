"""The batch queue under a simulated clock: nothing lost, duplicated or misrouted, and the right one first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from enginehouse_inference.batching.policy import Batch, BatchPolicy, Entry, QueueFullError, QueuePolicy, TimeoutAction
from enginehouse_inference.batching.queue import BatchQueue
from hypothesis import given, settings
from hypothesis import strategies as st

queues = st.builds(
    QueuePolicy,
    max_queue_size=st.integers(1, 12),
    queue_timeout_ns=st.sampled_from([None, 30]),
    timeout_action=st.sampled_from(TimeoutAction),
    allow_timeout_override=st.booleans(),
)
policies = st.builds(
    BatchPolicy,
    max_batch_size=st.integers(1, 8),
    join=st.booleans(),
    max_queue_delay_ns=st.sampled_from([0, 5, 20]),
    preferred_batch_sizes=st.sampled_from([(), (2,), (3, 6)]),
    queue=queues,
    levels=st.one_of(st.just(()), st.tuples(queues, queues, queues)),
    default_level=st.just(3),
)


@dataclass
class Arrival:
    """A request that arrives `gap` after the one before."""

    gap: int
    rows: int
    shape: str
    deadline: int | None
    cancel_after: int | None
    alone: bool
    priority: int
    timeout: int | None


arrivals = st.lists(
    st.builds(
        Arrival,
        gap=st.sampled_from([0, 0, 0, 1, 2, 10]),
        rows=st.sampled_from([1, 1, 1, 2, 3, 20]),
        shape=st.sampled_from("aaab"),
        deadline=st.sampled_from([None, None, 3, 25]),
        cancel_after=st.sampled_from([None, None, None, 1, 12]),
        alone=st.sampled_from([False, False, True]),
        priority=st.integers(0, 4),
        timeout=st.sampled_from([None, None, 2, 40]),
    ),
    max_size=25,
)


@dataclass
class Simulation:
    """Serves arrivals with some instances, each batch taking `cost`, on a clock that jumps from event to event."""

    policy: BatchPolicy
    instances: int
    cost: int
    now: int = 0
    batches: list[tuple[int, Batch[int]]] = field(default_factory=list)
    # For each batch what waited: level, whether it was delayed, and shape.
    waiting: list[dict[int, tuple[int, bool, object]]] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    expired: set[int] = field(default_factory=set)
    cancelled: set[int] = field(default_factory=set)
    entries: dict[int, Entry[int]] = field(default_factory=dict)

    def run(self, arrivals: list[Arrival]) -> None:
        queue: BatchQueue[int] = BatchQueue(self.policy)
        events: list[tuple[int, str, int]] = []
        moment = 0
        for number, arrival in enumerate(arrivals):
            moment += arrival.gap
            events.append((moment, "arrive", number))
            if arrival.cancel_after is not None:
                events.append((moment + arrival.cancel_after, "cancel", number))
        busy: list[int] = []
        while events or busy or len(queue):
            upcoming = [event[0] for event in events] + busy
            if (wake := queue.next_event_ns()) is not None and (len(busy) < self.instances or wake > self.now):
                upcoming.append(wake)
            assert upcoming, "requests wait and nothing will ever happen"
            self.now = max(self.now, min(upcoming))
            busy = [end for end in busy if end > self.now]
            for event in sorted(e for e in events if e[0] <= self.now):
                events.remove(event)
                self._happen(queue, event, arrivals)
            self.expired |= {entry.item for entry in queue.expire(self.now)}
            while len(busy) < self.instances:
                waiting = {n: (e.level, e.delayed, e.shape) for n, e in self.entries.items() if not e.gone}
                ready = queue.ready(self.now)
                batch = queue.take(self.now)
                assert ready == (batch is not None)
                if batch is None:
                    break
                self.batches.append((self.now, batch))
                self.waiting.append(waiting)
                busy.append(self.now + self.cost)
            if len(busy) < self.instances and len(queue):
                wake = queue.next_event_ns()
                assert wake is not None and wake > self.now, "a request waits for nothing while an instance idles"

    def _happen(self, queue: BatchQueue[int], event: tuple[int, str, int], arrivals: list[Arrival]) -> None:
        _, kind, number = event
        arrival = arrivals[number]
        if kind == "arrive":
            deadline = None if arrival.deadline is None else self.now + arrival.deadline
            try:
                self.entries[number] = queue.add(
                    number,
                    arrival.rows,
                    arrival.shape,
                    self.now,
                    deadline,
                    alone=arrival.alone,
                    priority=arrival.priority,
                    timeout_ns=arrival.timeout,
                )
            except QueueFullError:
                self.refused.add(number)
        elif number in self.entries and not self.entries[number].gone:
            queue.remove(self.entries[number])
            self.cancelled.add(number)


@settings(max_examples=100, deadline=None)
@given(policies, arrivals, st.integers(1, 3), st.sampled_from([1, 7, 15]))
def test_every_request_is_served_once_or_says_why_not(
    policy: BatchPolicy, arrivals: list[Arrival], instances: int, cost: int
) -> None:
    simulation = Simulation(policy, instances, cost)
    simulation.run(arrivals)
    rows: dict[int, list[tuple[int, int]]] = {}
    for _, batch in simulation.batches:
        alone = any(part.entry.alone for part in batch.slices)
        assert batch.rows >= 1
        if alone:
            assert [(part.start, part.stop) for part in batch.slices] == [
                (0, arrivals[batch.slices[0].entry.item].rows)
            ]
        else:
            assert batch.rows <= policy.max_batch_size
        assert len({part.entry.shape for part in batch.slices}) == 1, "shapes were mixed"
        assert policy.join or len(batch.slices) == 1, "requests were joined"
        for part in batch.slices:
            assert part.rows >= 1
            rows.setdefault(part.entry.item, []).append((part.start, part.stop))
    for number, arrival in enumerate(arrivals):
        dropped = number in simulation.refused | simulation.expired | simulation.cancelled
        pieces = rows.get(number, [])
        # In order, without gap or overlap.
        assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces)][: len(pieces)]
        if dropped:
            assert not pieces or pieces[-1][1] < arrival.rows, "dropped although all of it was taken"
        else:
            assert pieces and pieces[-1][1] == arrival.rows, "lost"
    assert not rows.keys() & simulation.refused


@settings(max_examples=200, deadline=None)
@given(policies, arrivals, st.integers(1, 2), st.sampled_from([1, 7, 15]))
def test_the_highest_priority_first_and_then_first_in_first_out(
    policy: BatchPolicy, arrivals: list[Arrival], instances: int, cost: int
) -> None:
    simulation = Simulation(policy, instances, cost)
    simulation.run(arrivals)
    for (_, batch), waiting in zip(simulation.batches, simulation.waiting, strict=True):
        shape = batch.slices[0].entry.shape
        # By level, then those whose time is not over; of these the first to come.
        line = sorted(
            (level, delayed, 0 if delayed else number)
            for number, (level, delayed, its_shape) in waiting.items()
            if its_shape is shape
        )
        taken = [
            (level, delayed, 0 if delayed else part.entry.item)
            for part in batch.slices
            for level, delayed, _ in [waiting[part.entry.item]]
        ]
        assert taken == line[: len(taken)]


@settings(max_examples=200, deadline=None)
@given(policies, arrivals, st.integers(1, 2), st.sampled_from([7, 15]))
def test_a_level_holds_what_it_may_and_a_delay_drops_nothing(
    policy: BatchPolicy, arrivals: list[Arrival], instances: int, cost: int
) -> None:
    simulation = Simulation(policy, instances, cost)
    simulation.run(arrivals)
    for waiting in simulation.waiting:
        levels = [level for level, _, _ in waiting.values()]
        assert all(levels.count(level) <= policy.waiting(level).max_queue_size for level in levels)
    for number in simulation.expired:
        entry, arrival = simulation.entries[number], arrivals[number]
        waits = policy.waiting(entry.level)
        if waits.timeout_action is TimeoutAction.DELAY:
            assert arrival.deadline is not None and entry.deadline_ns == entry.arrived_ns + arrival.deadline
        else:
            asked = arrival.timeout if waits.allow_timeout_override else None
            limits = [n for n in (arrival.deadline, waits.queue_timeout_ns, asked) if n is not None]
            assert entry.deadline_ns == entry.arrived_ns + min(limits)


@settings(max_examples=100, deadline=None)
@given(policies, arrivals, st.integers(1, 3), st.sampled_from([1, 7, 15]))
def test_no_request_begins_after_its_deadline(
    policy: BatchPolicy, arrivals: list[Arrival], instances: int, cost: int
) -> None:
    simulation = Simulation(policy, instances, cost)
    simulation.run(arrivals)
    for when, batch in simulation.batches:
        for part in batch.slices:
            assert part.entry.deadline_ns is None or when < part.entry.deadline_ns


def fill(policy: BatchPolicy, *rows: int, shape: str = "a", now: int = 0) -> BatchQueue[int]:
    queue: BatchQueue[int] = BatchQueue(policy)
    for number, count in enumerate(rows):
        queue.add(number, count, shape, now)
    return queue


def taken(queue: BatchQueue[int], now: int = 0) -> list[tuple[int, int, int]] | None:
    batch = queue.take(now)
    return None if batch is None else [(s.entry.item, s.start, s.stop) for s in batch.slices]


def test_without_delay_a_batch_is_what_queued() -> None:
    assert taken(fill(BatchPolicy(max_batch_size=8), 1, 2, 1)) == [(0, 0, 1), (1, 0, 2), (2, 0, 1)]


def test_a_request_that_does_not_fit_whole_waits_for_the_next_batch() -> None:
    queue = fill(BatchPolicy(max_batch_size=4, max_queue_delay_ns=100), 3, 3)
    assert taken(queue) == [(0, 0, 3)]
    assert taken(queue) is None
    assert queue.next_event_ns() == 100
    assert taken(queue, 100) == [(1, 0, 3)]


def test_a_request_larger_than_a_batch_is_split_and_its_rest_joined() -> None:
    queue = fill(BatchPolicy(max_batch_size=4), 10, 2)
    assert taken(queue) == [(0, 0, 4)]
    assert taken(queue) == [(0, 4, 8)]
    assert taken(queue) == [(0, 8, 10), (1, 0, 2)]
    assert len(queue) == 0


def test_a_preferred_size_leaves_before_the_delay() -> None:
    policy = BatchPolicy(max_batch_size=8, max_queue_delay_ns=100, preferred_batch_sizes=(4,))
    assert taken(fill(policy, 1, 1, 1)) is None
    assert taken(fill(policy, 1, 1, 1, 1, 1)) == [(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 1)]


def test_the_shape_that_waited_longest_leaves_first() -> None:
    queue: BatchQueue[int] = BatchQueue(BatchPolicy(max_batch_size=4))
    queue.add(0, 1, "a", 0)
    queue.add(1, 1, "b", 1)
    queue.add(2, 1, "a", 2)
    assert taken(queue, 2) == [(0, 0, 1), (2, 0, 1)]
    assert taken(queue, 2) == [(1, 0, 1)]


def test_a_full_queue_refuses_and_takes_again_when_one_leaves() -> None:
    queue = fill(BatchPolicy(max_batch_size=1, queue=QueuePolicy(max_queue_size=2)), 1, 1)
    with pytest.raises(QueueFullError):
        queue.add(2, 1, "a", 0)
    queue.take(0)
    queue.add(2, 1, "a", 0)


def test_a_policy_can_change_while_requests_wait() -> None:
    queue = fill(BatchPolicy(max_batch_size=8, max_queue_delay_ns=1000), 1, 1)
    assert taken(queue) is None
    queue.policy = replace(queue.policy, max_queue_delay_ns=0)
    assert taken(queue) == [(0, 0, 1), (1, 0, 1)]


def test_forgotten_deadlines_do_not_pile_up() -> None:
    queue: BatchQueue[int] = BatchQueue(BatchPolicy(max_batch_size=1))
    for number in range(10_000):
        queue.add(number, 1, "a", number, deadline_ns=10**12)
        queue.take(number)
    assert len(queue._alarms) < 200
    assert queue.next_event_ns() is None


def test_a_batch_that_may_grow_waits_when_it_is_small() -> None:
    queue = fill(BatchPolicy(max_batch_size=8), 1, 2)
    assert queue.take(0, least=4) is None
    queue.add(2, 1, "a", 0)
    assert (batch := queue.take(0, least=4)) is not None and batch.rows == 4
    queue.add(3, 1, "a", 0, alone=True)
    assert (batch := queue.take(0, least=4)) is not None and batch.rows == 1


def test_a_request_that_is_alone_waits_for_no_delay_and_is_not_cut() -> None:
    queue = fill(BatchPolicy(max_batch_size=4, max_queue_delay_ns=100), 1)
    queue.add(1, 7, "a", 1, alone=True)
    assert (batch := queue.take(1)) is not None and [s.entry.item for s in batch.slices] == [1] and batch.rows == 7
    assert queue.take(1) is None


def test_a_higher_priority_leaves_first_and_takes_lower_ones_along() -> None:
    policy = BatchPolicy(max_batch_size=3, levels=(QueuePolicy(), QueuePolicy()), default_level=2)
    queue: BatchQueue[int] = BatchQueue(policy)
    for number, priority in enumerate((2, 0, 1, 9)):
        queue.add(number, 1, "a", 0, priority=priority)
    assert taken(queue) == [(2, 0, 1), (0, 0, 1), (1, 0, 1)]
    assert taken(queue) == [(3, 0, 1)]


def test_each_level_has_a_queue_of_its_own() -> None:
    policy = BatchPolicy(levels=(QueuePolicy(max_queue_size=2), QueuePolicy(max_queue_size=1)), default_level=2)
    queue: BatchQueue[int] = BatchQueue(policy)
    queue.add(0, 1, "a", 0)
    with pytest.raises(QueueFullError) as full:
        queue.add(1, 1, "a", 0, priority=2)
    assert (full.value.limit, full.value.level) == (1, 2)
    queue.add(2, 1, "a", 0, priority=1)
    queue.add(3, 1, "a", 0, priority=1)
    with pytest.raises(QueueFullError):
        queue.add(4, 1, "a", 0, priority=1)


def test_a_request_whose_time_is_over_is_delayed_and_its_client_still_heard() -> None:
    delaying = QueuePolicy(queue_timeout_ns=10, timeout_action=TimeoutAction.DELAY)
    queue: BatchQueue[int] = BatchQueue(BatchPolicy(max_batch_size=1, queue=delaying))
    queue.add(0, 1, "a", 0)
    queue.add(1, 1, "a", 0, deadline_ns=15)
    assert queue.next_event_ns() == 0 and queue.next_alarm_ns() == 10
    assert queue.expire(10) == []
    queue.add(2, 1, "a", 11)
    assert [entry.item for entry in queue.expire(15)] == [1]
    assert taken(queue, 15) == [(2, 0, 1)]
    assert taken(queue, 15) == [(0, 0, 1)]


def test_a_request_may_shorten_its_time_and_not_lengthen_it() -> None:
    queue: BatchQueue[int] = BatchQueue(BatchPolicy(queue=QueuePolicy(queue_timeout_ns=10)))
    assert queue.add(0, 1, "a", 0, timeout_ns=3).deadline_ns == 3
    assert queue.add(1, 1, "a", 0, timeout_ns=30).deadline_ns == 10
    queue.policy = BatchPolicy(queue=QueuePolicy(allow_timeout_override=False))
    assert queue.add(2, 1, "a", 0, timeout_ns=3).deadline_ns is None
