"""Prometheus metrics: GPUs under DCGM's names and labels, so that dashboards made for it work; the host; ourselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from enginehouse_telemetry.hub import Hub
from enginehouse_telemetry.node import GpuSource
from enginehouse_telemetry.nvml_collector import GpuStatus
from enginehouse_telemetry.readings import GpuReading, HostReading
from enginehouse_telemetry.sampler import Sampler

MIB = 1 << 20

GPU_LABELS = ("gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION")
# Added where a kubelet is asked. Empty for a GPU that nobody or several containers hold: each GPU has one line, so
# that sums are right; `enginehouse_gpu_allocation` has a line for each holder.
POD_LABELS = ("namespace", "pod", "container")


@dataclass(frozen=True)
class _Gpu:
    """A metric of a GPU: its name, the reading's field, what to divide it by, what it says.

    A counter's type is "unknown": the client library would append "_total" to a counter, and DCGM's names have none.
    """

    name: str
    field: str
    help: str
    divisor: int = 1
    type: str = "gauge"


GPU_METRICS: tuple[_Gpu, ...] = (
    _Gpu("DCGM_FI_DEV_GPU_UTIL", "utilization_gpu_percent", "GPU utilization (in %)."),
    _Gpu("DCGM_FI_DEV_MEM_COPY_UTIL", "utilization_memory_percent", "Memory utilization (in %)."),
    _Gpu("DCGM_FI_DEV_ENC_UTIL", "utilization_encoder_percent", "Encoder utilization (in %)."),
    _Gpu("DCGM_FI_DEV_DEC_UTIL", "utilization_decoder_percent", "Decoder utilization (in %)."),
    _Gpu("DCGM_FI_DEV_FB_TOTAL", "memory_total_bytes", "Framebuffer memory (in MiB).", MIB),
    _Gpu("DCGM_FI_DEV_FB_FREE", "memory_free_bytes", "Framebuffer memory free (in MiB).", MIB),
    _Gpu("DCGM_FI_DEV_FB_USED", "memory_used_bytes", "Framebuffer memory used (in MiB).", MIB),
    _Gpu("DCGM_FI_DEV_FB_RESERVED", "memory_reserved_bytes", "Framebuffer memory reserved (in MiB).", MIB),
    _Gpu("DCGM_FI_DEV_POWER_USAGE", "power_draw_watts", "Power draw (in W)."),
    _Gpu("DCGM_FI_DEV_POWER_USAGE_INSTANT", "power_draw_instant_watts", "Power draw at this moment (in W)."),
    _Gpu("DCGM_FI_DEV_POWER_MGMT_LIMIT", "power_limit_watts", "Power limit (in W)."),
    _Gpu("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "power_limit_enforced_watts", "Enforced power limit (in W)."),
    _Gpu("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "energy_millijoules", "Energy since boot (in mJ).", type="unknown"),
    _Gpu("DCGM_FI_DEV_GPU_TEMP", "temperature_gpu_celsius", "GPU temperature (in C)."),
    _Gpu("DCGM_FI_DEV_MEMORY_TEMP", "temperature_memory_celsius", "Memory temperature (in C)."),
    _Gpu("DCGM_FI_DEV_SM_CLOCK", "clock_sm_mhz", "SM clock frequency (in MHz)."),
    _Gpu("DCGM_FI_DEV_MEM_CLOCK", "clock_memory_mhz", "Memory clock frequency (in MHz)."),
    _Gpu("DCGM_FI_DEV_VIDEO_CLOCK", "clock_video_mhz", "Video clock frequency (in MHz)."),
    _Gpu("DCGM_FI_DEV_PSTATE", "pstate", "Performance state, 0 the highest."),
    _Gpu("DCGM_FI_DEV_FAN_SPEED", "fan_speed_percent", "Fan speed (in %)."),
    _Gpu("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "throttle_reasons_mask", "Clock throttle reasons (a bit mask)."),
    _Gpu("DCGM_FI_DEV_PCIE_LINK_GEN", "pcie_generation_current", "PCIe link generation."),
    _Gpu("DCGM_FI_DEV_PCIE_LINK_WIDTH", "pcie_width_current", "PCIe link width."),
    _Gpu("DCGM_FI_DEV_PCIE_MAX_LINK_GEN", "pcie_generation_max", "Highest PCIe link generation."),
    _Gpu("DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH", "pcie_width_max", "Highest PCIe link width."),
    _Gpu("DCGM_FI_DEV_PCIE_TX_THROUGHPUT", "pcie_tx_bytes_per_second", "PCIe sent (in KB/s).", 1024),
    _Gpu("DCGM_FI_DEV_PCIE_RX_THROUGHPUT", "pcie_rx_bytes_per_second", "PCIe received (in KB/s).", 1024),
    _Gpu("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "pcie_replays", "PCIe retries.", type="unknown"),
    _Gpu("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "ecc_corrected_volatile", "Corrected errors since boot.", type="unknown"),
    _Gpu("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "ecc_uncorrected_volatile", "Uncorrected errors since boot.", type="unknown"),
    _Gpu("DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", "ecc_corrected_aggregate", "Corrected errors ever.", type="unknown"),
    _Gpu("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", "ecc_uncorrected_aggregate", "Uncorrected errors ever.", type="unknown"),
)

# Suffix of `enginehouse_host_`, the reading's field, what to divide it by, what it says.
HOST_METRICS: tuple[tuple[str, str, float, str], ...] = (
    ("cpu_utilization_ratio", "cpu_utilization_percent", 100.0, "Part of the time that the CPUs were busy."),
    ("load_average_1m", "load_average_1m", 1.0, "Load average over a minute."),
    ("cpu_frequency_hertz", "cpu_frequency_mhz", 1e-6, "Mean frequency of the cores."),
    ("cpu_temperature_celsius", "cpu_temperature_celsius", 1.0, "Temperature of the hottest CPU package."),
    ("cpu_power_watts", "cpu_power_watts", 1.0, "Power of the CPU packages (RAPL)."),
    ("memory_total_bytes", "memory_total_bytes", 1.0, "Memory."),
    ("memory_used_bytes", "memory_used_bytes", 1.0, "Memory in use."),
    ("memory_available_bytes", "memory_available_bytes", 1.0, "Memory that can be had without swapping."),
    ("swap_used_bytes", "swap_used_bytes", 1.0, "Swap in use."),
)


class NodeMetrics(Collector):
    """The newest reading as metrics. What is absent from it is absent here; so is all of it once it is stale."""

    def __init__(self, hub: Hub, gpus: GpuSource, sampler: Sampler, hostname: str) -> None:
        self._hub, self._gpus, self._sampler, self._hostname = hub, gpus, sampler, hostname

    def collect(self) -> Iterator[Metric]:
        reading = self._hub.latest_reading
        if reading is not None and not self._hub.stalled_seconds:
            yield from self._of_gpus(reading.gpus)
            if self._hub.attribution.asked:
                yield self._of_allocations(reading.gpus)
            yield from self._of_host(reading.host)
        yield from self._of_service()

    def _of_gpus(self, readings: tuple[GpuReading, ...]) -> Iterator[Metric]:
        by_key = {(status.identity.uuid, status.identity.index): status for status in self._gpus.statuses}
        labelled = [(reading, self._labels(reading, by_key)) for reading in readings]
        for metric in GPU_METRICS:
            family = Metric(metric.name, metric.help, metric.type)
            for reading, labels in labelled:
                value = getattr(reading, metric.field)
                if value is not None:
                    family.add_sample(metric.name, labels, value / metric.divisor)
            if family.samples:
                yield family
        lost = Metric("enginehouse_gpu_lost", "1 when the GPU fell off the bus or needs a reset, else 0.", "gauge")
        for reading, labels in labelled:
            lost.add_sample(lost.name, labels, float(reading.lost))
        yield lost

    def _labels(self, reading: GpuReading, statuses: dict[tuple[str, int], GpuStatus]) -> dict[str, str]:
        status = statuses.get((reading.uuid, reading.index))
        identity = status.identity if status else None
        values = (
            str(reading.index),
            reading.uuid,
            (identity and identity.pci_bus_id) or "",
            f"nvidia{reading.index}",
            (identity and identity.product) or "",
            self._hostname,
            (identity and identity.driver_version) or "",
        )
        labels = dict(zip(GPU_LABELS, values, strict=True))
        if self._hub.attribution.asked:
            labels.update(zip(POD_LABELS, self._holder(reading), strict=True))
        return labels

    def _holder(self, reading: GpuReading) -> tuple[str, str, str]:
        """The one container that holds a GPU alone."""
        held = self._hub.latest_allocations.by_gpu.get(reading.index, ())
        if len(held) != 1 or held[0].shared:
            return "", "", ""
        return held[0].namespace, held[0].pod, held[0].container

    def _of_allocations(self, readings: tuple[GpuReading, ...]) -> Metric:
        family = Metric("enginehouse_gpu_allocation", "A container that holds the GPU or a part of it.", "gauge")
        for reading in readings:
            for held in self._hub.latest_allocations.by_gpu.get(reading.index, ()):
                labels = {
                    "gpu": str(reading.index),
                    "UUID": reading.uuid,
                    "Hostname": self._hostname,
                    "namespace": held.namespace,
                    "pod": held.pod,
                    "container": held.container,
                    "resource": held.resource,
                    "device": held.device,
                    "mig_uuid": held.mig_uuid,
                    "shared": str(held.shared).lower(),
                }
                family.add_sample(family.name, labels, 1.0)
        return family

    def _of_host(self, host: HostReading) -> Iterator[Metric]:
        for suffix, field, divisor, text in HOST_METRICS:
            value = getattr(host, field)
            if value is not None:
                family = GaugeMetricFamily(f"enginehouse_host_{suffix}", text, labels=("Hostname",))
                family.add_metric((self._hostname,), value / divisor)
                yield family

    def _of_service(self) -> Iterator[Metric]:
        taken = self._hub.history.newest_sequence
        yield CounterMetricFamily("enginehouse_telemetry_samples", "Samples taken.", value=taken)
        yield CounterMetricFamily(
            "enginehouse_telemetry_missed_samples", "Samples not taken because one took too long.", self._sampler.missed
        )
        yield GaugeMetricFamily(
            "enginehouse_telemetry_sample_period_seconds", "Time between samples now.", self._hub.streams.period
        )
        yield GaugeMetricFamily("enginehouse_telemetry_streams", "Open streams.", len(self._hub.streams))
        yield GaugeMetricFamily(
            "enginehouse_telemetry_history_bytes", "Bytes of past samples.", self._hub.history.bytes
        )
        if self._hub.attribution.asked:
            yield GaugeMetricFamily(
                "enginehouse_telemetry_pod_resources_up",
                "1 when the kubelet says which containers hold which GPU.",
                float(self._hub.attribution.works),
            )
        yield GaugeMetricFamily(
            "enginehouse_telemetry_stalled", "1 when the driver does not answer.", float(self._hub.stalled_seconds > 0)
        )
