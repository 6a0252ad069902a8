"""GPUs through the real pynvml over a C library: values, absences, losses, reloads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from telemetry_world import Agent, Control, build, eventually, install, running

from enginehouse.v1 import telemetry_pb2 as pb


def present(message) -> set[str]:  # type: ignore[no-untyped-def]
    return {field.name for field, _ in message.ListFields()}


def test_every_value_of_a_gpu_that_has_all(steady: Agent) -> None:
    sample = steady.when(lambda sample: sample.gpus[0].HasField("pcie_rx_bytes_per_second"), "PCIe throughput")
    gpu = sample.gpus[0]
    # A fan is what this board has not.
    assert set(pb.GpuSample.DESCRIPTOR.fields_by_name) - present(gpu) == {
        "index",
        "state_message",
        "fan_speed_percent",
        "mig_instances",
        "allocations",
    }
    expected = pb.GpuSample(
        uuid="GPU-aaaa",
        product="NVIDIA H200",
        state=pb.DEVICE_STATE_OK,
        pstate=0,
        utilization_gpu_percent=45,
        utilization_memory_percent=20,
        memory_total_bytes=150754820096,
        memory_free_bytes=150754820096 - 1073741824 - 536870912,
        memory_used_bytes=1073741824,
        memory_reserved_bytes=536870912,
        power_draw_watts=70.123,
        power_draw_average_watts=70.0,
        power_draw_instant_watts=71.0,
        power_limit_watts=700.0,
        power_limit_enforced_watts=650.0,
        temperature_gpu_celsius=34,
        temperature_memory_celsius=40,
        pcie_generation_current=5,
        pcie_generation_max=5,
        pcie_width_current=16,
        pcie_width_max=16,
        pcie_tx_bytes_per_second=1000 * 1024,
        pcie_rx_bytes_per_second=2000 * 1024,
        pcie_replays=3,
        clock_graphics_mhz=1965,
        clock_sm_mhz=1980,
        clock_memory_mhz=3201,
        clock_video_mhz=1545,
        energy_millijoules=123456789012,
        throttle_reasons_mask=5,
        throttle_reasons=["gpu_idle", "sw_power_cap"],
        utilization_encoder_percent=1,
        utilization_decoder_percent=2,
        ecc_corrected_volatile=1,
        ecc_uncorrected_volatile=0,
        ecc_corrected_aggregate=4,
        ecc_uncorrected_aggregate=2,
    )
    found = pb.GpuSample()
    found.CopyFrom(gpu)
    found.ClearField("processes")
    assert found == expected
    compute, hidden, graphics = gpu.processes
    assert compute == pb.GpuProcess(pid=4242, name="python3", memory_used_bytes=1000000, kind="compute")
    assert (hidden.pid, hidden.HasField("memory_used_bytes"), graphics.kind) == (4243, False, "graphics")


def test_what_a_gpu_does_not_report_is_absent(steady: Agent) -> None:
    gpu = steady.snapshot().gpus[1]
    assert present(gpu) == {
        "uuid",
        "product",
        "index",
        "state",
        "state_message",
        "memory_total_bytes",
        "memory_free_bytes",
        "memory_used_bytes",
        "memory_reserved_bytes",
        "utilization_gpu_percent",
        "utilization_memory_percent",
        "temperature_gpu_celsius",
        "throttle_reasons_mask",
    }
    assert gpu.utilization_gpu_percent == 0 and gpu.throttle_reasons_mask == 0 and gpu.memory_used_bytes == 0
    assert gpu.state_message == "clock_sm_mhz: Insufficient Permissions"


def test_devices(steady: Agent) -> None:
    hopper, turing = steady.devices().devices
    assert hopper == pb.GpuDevice(
        name="projects/default/nodes/node-1/devices/GPU-aaaa",
        uuid="GPU-aaaa",
        product="NVIDIA H200",
        serial="1650000000001",
        pci_bus_id="00000000:3B:00.0",
        compute_capability="9.0",
        driver_version="550.54.15",
        cuda_driver_version="12.4",
        vbios_version="96.00.99.00.01",
        memory_total_bytes=150754820096,
        pcie_generation_max=5,
        pcie_width_max=16,
        power_limit_default_watts=700.0,
        power_limit_min_watts=200.0,
        power_limit_max_watts=700.0,
        clock_graphics_max_mhz=1980,
        clock_sm_max_mhz=1980,
        clock_memory_max_mhz=3201,
        ecc_enabled=True,
        mig_enabled=False,
        persistence_enabled=True,
        compute_mode="Exclusive_Process",
        state=pb.DEVICE_STATE_OK,
    )
    assert (turing.index, turing.product, turing.HasField("serial")) == (1, "Tesla T4", False)


def test_values_follow_the_gpu(agent: Agent, control: Control) -> None:
    control.set(gpu0_utilization_gpu=99, gpu1_temperature=61, gpu0_process_compute="", gpu0_process_graphics="")
    sample = agent.when(lambda s: s.gpus[1].temperature_gpu_celsius == 61 and not s.gpus[0].processes, "the change")
    assert sample.gpus[0].utilization_gpu_percent == 99


@pytest.mark.parametrize("code", [15, 16])
def test_a_lost_gpu_does_not_stop_the_others_and_may_return(agent: Agent, control: Control, code: int) -> None:
    control.set(gpu0_lost=code)
    sample = agent.when(lambda s: s.gpus[0].state == pb.DEVICE_STATE_LOST, "the loss")
    assert present(sample.gpus[0]) == {"uuid", "product", "state", "state_message"}
    assert sample.gpus[1].state == pb.DEVICE_STATE_OK and sample.gpus[1].temperature_gpu_celsius == 60
    lost, well = agent.devices().devices
    assert lost.state == pb.DEVICE_STATE_LOST and lost.product == "NVIDIA H200" and lost.state_message
    assert well.state == pb.DEVICE_STATE_OK
    text = agent.metrics()
    assert re.search(r'^enginehouse_gpu_lost\{.*gpu="0".*\} 1.0$', text, re.M)
    assert re.search(r'^DCGM_FI_DEV_GPU_TEMP\{.*gpu="1".*\} 60.0$', text, re.M)
    assert not re.search(r'^DCGM_.*gpu="0"', text, re.M)

    control.set(gpu0_lost=0)
    back = agent.when(lambda s: s.gpus[0].state == pb.DEVICE_STATE_OK, "the return").gpus[0]
    assert back.utilization_gpu_percent == 45 and not back.state_message
    assert agent.devices().devices[0].state == pb.DEVICE_STATE_OK


def test_a_gpu_that_is_lost_from_the_start(tmp_path: Path, libraries: Path, control: Control) -> None:
    control.set(gpu0_handle="!15")
    with running(tmp_path, libraries, control.path) as agent:
        lost, well = agent.devices().devices
        assert lost.name == "projects/default/nodes/node-1/devices/0" and lost.state == pb.DEVICE_STATE_LOST
        assert well.uuid == "GPU-bbbb" and agent.snapshot().gpus[0].state == pb.DEVICE_STATE_LOST
        control.set(gpu0_handle=None)
        agent.when(lambda s: s.gpus[0].uuid == "GPU-aaaa", "the return")
        assert agent.devices().devices[0].name.endswith("/devices/GPU-aaaa")


def test_a_driver_that_goes_away_is_awaited(agent: Agent, control: Control) -> None:
    control.set(broken=1, init="!9")
    agent.when(lambda s: not s.gpus, "the driver's end")
    eventually(lambda: "Driver Not Loaded" in agent.devices().message, "the reason")
    assert not agent.devices().devices
    assert agent.snapshot().host.memory_total_bytes > 0
    control.set(broken=None, init=None)
    agent.when(lambda s: len(s.gpus) == 2, "the driver's return")
    assert not agent.devices().message


def test_a_gpu_that_a_reload_no_longer_lists_is_lost(agent: Agent, control: Control) -> None:
    control.set(broken=1)
    agent.when(lambda s: not s.gpus, "the driver's end")
    control.set(broken=None, count=1)
    gpus = agent.when(lambda s: s.gpus, "the driver's return").gpus
    assert [(gpu.uuid, gpu.state) for gpu in gpus] == [
        ("GPU-aaaa", pb.DEVICE_STATE_OK),
        ("GPU-bbbb", pb.DEVICE_STATE_LOST),
    ]


def test_a_library_that_appears_is_used(tmp_path: Path, library: Path, control: Control) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    # Not a library: found before one that the machine may have, and refused.
    (folder / "libnvidia-ml.so.1").write_text("not a library")
    with running(tmp_path, folder, control.path) as agent:
        assert "NVML Shared Library Not Found" in agent.devices().message
        sample = agent.snapshot()
        assert not sample.gpus and sample.host.memory_total_bytes > 0
        assert "DCGM_" not in agent.metrics() and "enginehouse_host_memory_total_bytes" in agent.metrics()
        install(library, folder)
        agent.when(lambda s: len(s.gpus) == 2, "the library")


def test_a_library_that_is_replaced_with_the_driver_is_loaded_anew(tmp_path: Path, control: Control) -> None:
    folders = [tmp_path / version for version in ("one", "two")]
    for number, folder in enumerate(folders, 1):
        folder.mkdir()
        build(folder, f'-DFAKE_VERSION="{number}"')
    install(folders[0] / "libfake.so", tmp_path / "lib")
    control.set(kernel=1)
    with running(tmp_path, tmp_path / "lib", control.path) as agent:
        assert len(agent.snapshot().gpus) == 2
        control.set(kernel=2, broken=1)
        eventually(lambda: "mismatch" in agent.devices().message, "the mismatch")
        install(folders[1] / "libfake.so", tmp_path / "lib")
        control.set(broken=None)
        agent.when(lambda s: len(s.gpus) == 2, "the new library")


def test_an_old_driver_is_asked_in_its_own_words(tmp_path: Path, control: Control) -> None:
    install(build(tmp_path, "-DFAKE_OLD_DRIVER"), tmp_path / "lib")
    with running(tmp_path, tmp_path / "lib", control.path) as agent:
        gpu = agent.snapshot().gpus[0]
        assert not gpu.HasField("memory_reserved_bytes")
        assert gpu.memory_used_bytes == 1073741824 + 536870912
        assert list(gpu.throttle_reasons) == ["gpu_idle", "sw_power_cap"]
        assert [process.pid for process in gpu.processes] == [4242, 4243, 4244]


def test_no_gpus(tmp_path: Path, libraries: Path) -> None:
    control = Control(tmp_path / "empty.txt")
    control.write()
    with running(tmp_path, libraries, control.path) as agent:
        assert agent.devices() == pb.ListDevicesResponse(
            message="NVML works and finds no GPU that this process may use"
        )


def test_a_gpu_that_is_not_ours_is_not_listed(tmp_path: Path, libraries: Path, control: Control) -> None:
    control.set(gpu0_handle="!4")
    with running(tmp_path, libraries, control.path) as agent:
        assert [device.uuid for device in agent.devices().devices] == ["GPU-bbbb"]
        assert [(gpu.uuid, gpu.index) for gpu in agent.snapshot().gpus] == [("GPU-bbbb", 1)]


def test_a_driver_that_hangs_does_not_hold_up_the_end(agent: Agent, control: Control) -> None:
    control.set(hang=1)
    assert agent.stop() == 0
