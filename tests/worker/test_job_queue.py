"""The queue between the thread that reads frames and the threads of a model's instances."""

from __future__ import annotations

import threading

import pytest
from enginehouse_worker.errors import WorkerError
from enginehouse_worker.runner.instances import JobQueue


class Numbered:
    """A job that is only its number."""

    def __init__(self, number: int) -> None:
        self.id = number

    def run(self, instance: object) -> None: ...

    def begin(self, instance: object) -> None: ...

    def fail(self, error: WorkerError) -> None: ...


def test_jobs_leave_in_order_but_for_those_taken_back() -> None:
    queue = JobQueue()
    jobs = [Numbered(number) for number in range(4)]
    for job in jobs:
        queue.put(job)
    assert queue.remove(2) is jobs[2]
    assert queue.remove(2) is None
    assert queue.take() is jobs[0]
    assert queue.remove(0) is None, "an instance has begun it"
    queue.close()
    assert [queue.take(), queue.take(), queue.take(), queue.take()] == [jobs[1], jobs[3], None, None]


def test_a_closed_queue_takes_no_jobs_and_lets_every_instance_go() -> None:
    queue = JobQueue()
    ended: list[object] = []
    instances = [threading.Thread(target=lambda: ended.append(queue.take()), daemon=True) for _ in range(3)]
    for instance in instances:
        instance.start()
    queue.close()
    queue.close()
    for instance in instances:
        instance.join(10)
    assert ended == [None, None, None]
    with pytest.raises(WorkerError, match="unloaded"):
        queue.put(Numbered(1))


def test_each_job_is_run_or_taken_back_and_never_both() -> None:
    queue = JobQueue()
    taken: list[int] = []

    def serve() -> None:
        while (job := queue.take()) is not None:
            taken.append(job.id)

    instances = [threading.Thread(target=serve, daemon=True) for _ in range(3)]
    for instance in instances:
        instance.start()
    back = []
    for number in range(2000):
        queue.put(Numbered(number))
        if number % 2 and queue.remove(number) is not None:
            back.append(number)
    queue.close()
    for instance in instances:
        instance.join(30)
    assert sorted([*taken, *back]) == list(range(2000))
