"""What an instance does with CUDA and TensorRT, over stand-ins whose streams run late and in any order allowed."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import NARROW, Cuda, make
from enginehouse_worker.backends.tensorrt.host_memory import PINNED, PeerMemory, Ranges
from enginehouse_worker.backends.tensorrt.instance import TensorRtInstance
from enginehouse_worker.errors import WorkerError
from hypothesis import given, settings
from hypothesis import strategies as st


def batch(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"x": random.integers(-9, 9, (rows, 3)), "z": random.integers(-9, 9, (rows, 3)).astype(np.int32)}


def expected(inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(2 * inputs["x"] + inputs["z"])


def check(instance: TensorRtInstance, inputs: dict[str, np.ndarray]) -> None:
    y = instance.run(inputs, [])["y"]
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, expected(inputs))


@pytest.mark.parametrize("graphs", ["0", "2", "16"])
def test_batches_of_every_size_in_any_order(monkeypatch: pytest.MonkeyPatch, graphs: str) -> None:
    bindings, engine, loaded = make(monkeypatch, cuda_graphs=graphs, padding="off")
    instance = loaded.new_instance()
    for seed, rows in enumerate([1, 8, 2, 5, 1, 8, 1, 3, 2, 8]):
        check(instance, batch(rows, seed))
    # Each size went to the profile made for it.
    assert {(profile, rows) for profile, rows in engine.ran} == {(1, 1), (0, 2), (0, 3), (0, 5), (0, 8)}
    kept = bindings.kept()
    assert kept["executable"] == kept["graph"] == instance.ring * min(int(graphs), 5)
    instance.close()
    instance.close()
    assert not bindings.alive and loaded.device_memory_bytes == 0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from(["0", "1", "3", "16"]),
    st.sampled_from(["auto", "off"]),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=30),
)
def test_overlapping_batches_answer_their_own_rows(
    seed: int, graphs: str, padding: str, ring: int, steps: list[tuple[int, bool]]
) -> None:
    """Whatever order the streams run in, with as many batches begun as there is room for."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        bindings, engine, loaded = make(monkeypatch, seed=seed, cuda_graphs=graphs, padding=padding, ring=str(ring))
        engine.cost = lambda rows: [0, 5, 5, 1, 9, 2, 2, 7, 4][rows]
        instance = loaded.new_instance()
        begun: list[tuple[Any, np.ndarray, np.ndarray]] = []

        def finish() -> None:
            ticket, y, wanted = begun.pop(0)
            instance.finish(ticket)
            np.testing.assert_array_equal(y, wanted)

        for number, (rows, later) in enumerate(steps):
            if len(begun) == ring:
                finish()
            inputs, y = batch(rows, number), np.zeros((rows, 3), np.int64)
            begun.append((instance.begin(inputs, {"y": y}), y, expected(inputs)))
            if not later:
                finish()
        while begun:
            finish()
        instance.close()
        assert not bindings.alive


def test_a_known_size_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, engine, loaded = make(monkeypatch, padding="off")
    instance = loaded.new_instance()
    check(instance, batch(4))
    before = (bindings.made, len(engine.ran))
    for seed in range(5):
        check(instance, batch(4, seed))
    assert (bindings.made, len(engine.ran)) == before
    assert (bindings.calls["launch"], bindings.calls["copy in"], bindings.calls["copy out"]) == (6, 12, 6)


def test_a_full_ring_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, loaded = make(monkeypatch, ring="1")
    instance = loaded.new_instance()
    ticket = instance.begin(batch(2), {"y": None})
    with pytest.raises(WorkerError, match="1 batches are begun"):
        instance.begin(batch(2), {"y": None})
    with pytest.raises(WorkerError, match="in use"):
        instance.launch(((2, 3), (2, 3)))
    instance.finish(ticket)
    check(instance, batch(2))


@pytest.mark.parametrize("copies", [True, False])
def test_launches_overlap_and_are_waited_for(monkeypatch: pytest.MonkeyPatch, copies: bool) -> None:
    bindings, _, loaded = make(monkeypatch, signature=NARROW, padding="off")
    instance = loaded.new_instance()
    inputs = {name: value.astype(np.int32) for name, value in batch(4).items()}
    np.testing.assert_array_equal(instance.run(inputs, [])["y"], expected(inputs))
    launched = bindings.calls["launch"]
    for _ in range(8):
        instance.launch(((4, 3), (4, 3)), copies=copies)
    instance.wait()
    assert bindings.calls["launch"] == launched + 8
    assert not any(bindings.streams.values()) or copies  # nothing that was launched is left
    np.testing.assert_array_equal(instance.run(inputs, [])["y"], expected(inputs))
    instance.close()
    assert not bindings.alive


def test_rows_are_padded_where_that_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, engine, loaded = make(monkeypatch)
    engine.cost = lambda rows: {3: 9.0, 4: 2.0, 5: 1.0, 8: 3.0}.get(rows, 5.0)
    instance = loaded.new_instance()
    for number, rows in enumerate([8, 5, 3, 4, 3, 3, 5, 8, 4]):
        check(instance, batch(rows, number))
    ran = len(engine.ran)
    launched = bindings.calls["launch"]
    for number, rows in enumerate([3, 4, 5, 8]):
        check(instance, batch(rows, number))
    # 3 and 4 run as 5, whose graph there is; 8 and 5 as they are. Nothing is captured or measured again.
    assert len(engine.ran) == ran and bindings.calls["launch"] == launched + 4
    assert bindings.kept()["executable"] == 2 * instance.ring
    instance.close()
    assert not bindings.alive


def test_inputs_need_not_be_contiguous_and_types_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, loaded = make(monkeypatch)
    instance = loaded.new_instance()
    whole = np.arange(48).reshape(8, 6)
    check(instance, {"x": whole[::2, ::2], "z": np.asfortranarray(whole[:4, 3:]).astype(np.int32, order="F")})
    with pytest.raises(WorkerError, match="'x' is float32; expected INT64"):
        instance.run({**batch(2), "x": np.zeros((2, 3), np.float32)}, [])
    with pytest.raises(WorkerError, match="'z' is missing"):
        instance.run({"x": batch(2)["x"]}, [])
    with pytest.raises(WorkerError, match="unknown output 'w'"):
        instance.run(batch(2), ["w"])


@pytest.mark.parametrize(("rows", "columns"), [(9, 3), (0, 3), (4, 5)])
def test_shapes_that_the_engine_was_not_built_for(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    _, _, loaded = make(monkeypatch)
    instance = loaded.new_instance()
    with pytest.raises(WorkerError) as caught:
        instance.run({"x": np.zeros((rows, columns), np.int64), "z": np.zeros((rows, columns), np.int32)}, [])
    assert caught.value.code == "INVALID_ARGUMENT"
    check(instance, batch(3))


def test_whatever_fails_while_an_instance_is_made_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch)
    loaded.new_instance()
    needed = bindings.made
    # 3 streams, an event to wait for, the activations; 4 events and 3 tensors a slot; 2 events to time graphs.
    assert needed == 5 + 3 * 7 + 2
    for number in range(1, needed + 1):
        bindings, _, loaded = make(monkeypatch, fail_at=number)
        with pytest.raises(WorkerError):
            loaded.new_instance()
        assert not bindings.alive, f"call {number} failed"
        assert loaded.device_memory_bytes == 0


@pytest.mark.parametrize("padding", ["auto", "off"])
def test_whatever_fails_in_a_batch_the_instance_goes_on(monkeypatch: pytest.MonkeyPatch, padding: str) -> None:
    bindings, _, loaded = make(monkeypatch, padding=padding)
    instance = loaded.new_instance()
    first = bindings.made
    check(instance, batch(2))
    for number in range(1, bindings.made - first + 1):
        bindings, _, loaded = make(monkeypatch, padding=padding)
        instance = loaded.new_instance()
        bindings.fail_at = bindings.made + number
        with pytest.raises(WorkerError):
            instance.run(batch(2), [])
        check(instance, batch(2))
        instance.close()
        assert not bindings.alive, f"call {number} failed"


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_batch_that_fails_in_or_before_its_capture_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    bindings, engine, loaded = make(monkeypatch, padding="off")
    instance = loaded.new_instance()
    before = set(bindings.alive)
    engine.fail_run = step
    loaded.library.messages.add_error("the tactic broke")
    with pytest.raises(WorkerError, match="the tactic broke"):
        instance.run(batch(2), [])
    assert set(bindings.alive) == before
    check(instance, batch(2))
    instance.close()
    assert not bindings.alive


@pytest.mark.parametrize("fails_inside", [False, True])
def test_a_capture_that_another_thread_breaks_is_made_again(
    monkeypatch: pytest.MonkeyPatch, fails_inside: bool
) -> None:
    """One device synchronization, say of a library in the same process, must not cost a request."""
    bindings, engine, loaded = make(monkeypatch, padding="off")
    instance = loaded.new_instance()
    bindings.broken_captures = 1
    engine.fail_run = 2 if fails_inside else 0
    check(instance, batch(2))
    assert not bindings.broken_captures
    launches = bindings.calls["launch"]
    check(instance, batch(2))
    assert bindings.calls["launch"] == launches + 1
    instance.close()
    assert not bindings.alive


def test_a_capture_that_breaks_each_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch, padding="off")
    instance = loaded.new_instance()
    bindings.broken_captures = 3
    with pytest.raises(WorkerError, match="capturing a batch: cudaErrorStreamCaptureInvalidated"):
        instance.run(batch(2), [])
    check(instance, batch(2))
    instance.close()
    assert not bindings.alive


def test_an_engine_of_other_types_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    bindings, engine, loaded = make(monkeypatch)
    monkeypatch.setattr(engine, "get_tensor_dtype", lambda name: SimpleNamespace(name="FLOAT"), raising=False)
    with pytest.raises(WorkerError, match="'x' is INT64; the engine has FLOAT"):
        loaded.new_instance()
    assert not bindings.alive


def test_what_an_instance_needs_and_what_is_free_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch)
    loaded.new_instance()
    assert loaded.device_memory_bytes == 1000 + 3 * 3 * 8 * 3 * 4
    bindings.free_bytes = 500
    with pytest.raises(WorkerError, match=r"3 times .* for inputs and outputs.* are free") as caught:
        loaded.new_instance()
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert loaded.device_memory_bytes == 1000 + 3 * 3 * 8 * 3 * 4


def test_before_profiles_are_shared_each_instance_owns_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, loaded = make(monkeypatch, shares=False)
    first, second = loaded.new_instance(), loaded.new_instance()
    for number, rows in enumerate([1, 2, 1, 2]):
        check(first, batch(rows, number))
        check(second, batch(rows, number))
    assert {profile for profile, _ in engine.ran} == {0, 1} and engine.contexts == 2
    with pytest.raises(WorkerError, match="option profiles") as caught:
        loaded.new_instance()
    assert caught.value.code == "FAILED_PRECONDITION"
    second.close()
    check(loaded.new_instance(), batch(2))


def pages(count: int) -> tuple[mmap.mmap, np.ndarray, int]:
    memory = mmap.mmap(-1, 4096 * count)
    array = np.frombuffer(memory, np.int32)
    return memory, array, int(array.ctypes.data)


def test_registered_memory_is_copied_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings, _, loaded = make(monkeypatch, signature=NARROW)
    instance = loaded.new_instance()
    memory, array, address = pages(1)
    device = PeerMemory("cuda:0")
    assert device.register(address, len(memory), writable=True)
    x, z, y = (array[start : start + 12].reshape(4, 3) for start in (0, 64, 128))
    for number in range(3):
        x[:], z[:] = np.arange(12).reshape(4, 3) + number, number
        instance.finish(instance.begin({"x": x, "z": z}, {"y": y}))
        np.testing.assert_array_equal(y, 2 * x + z)
    assert bindings.kept()["pinned"] == 0  # the instance never needed memory of its own
    device.unregister(address)
    instance.finish(instance.begin({"x": x, "z": z}, {"y": y}))
    assert bindings.kept()["pinned"] == 3 and not bindings.registered
    np.testing.assert_array_equal(y, 2 * x + z)


def test_memory_that_cannot_be_registered_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bindings, _, _ = make(monkeypatch)
    bindings.registers = False
    device = PeerMemory("cuda:0")
    assert not any(device.register(4096 * n, 4096, writable=True) for n in range(3))
    assert capfd.readouterr().err.count("cannot be registered") == 1


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), max_size=20), st.integers(0, 130), st.integers(0, 9))
def test_ranges_cover_what_lies_in_one_of_them(items: list[tuple[int, int]], start: int, size: int) -> None:
    ranges, model = Ranges(), {}
    for index, length in items:
        if index * 3 in model:
            ranges.remove(index * 3)
            del model[index * 3]
        else:
            ranges.add(index * 3, length)
            model[index * 3] = length
    covered = any(s <= start and start + size <= s + n for s, n in model.items())
    if size:
        assert ranges.cover(start, size) == covered


def test_nothing_is_registered_at_first() -> None:
    assert not PINNED.cover(4096, 1)
    assert Cuda().kept() == {}
