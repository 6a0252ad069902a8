"""The optimizer's settings: environment variables `ENGINEHOUSE_*`, read when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from enginehouse.rpc.settings import ServerSettings


class OptimizerSettings(ServerSettings):
    """Beside what every server has."""

    port: int = Field(8010, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(
        Path(".enginehouse/optimizer"), description="Folder of the database, the blobs and running stages' files."
    )
    max_queued_jobs: int = Field(100, ge=1, description="Optimizations that may wait; more answer RESOURCE_EXHAUSTED.")
    max_running_jobs: int = Field(4, ge=1, description="Optimizations that run at once; their stages share the slots.")
    max_running_stages: int = Field(2, ge=1, description="Stages that run at once, in all environments together.")
    stages_per_environment: int = Field(
        1, ge=1, description="Stages that run at once in one worker environment: conversions take 6 to 9 GB each."
    )
    environment_stages: dict[str, PositiveInt] = Field(
        default_factory=dict,
        description='The same for named environments, as JSON: {"onnxruntime": 2}.',
    )
    stage_slots: dict[str, PositiveInt] = Field(
        default_factory=lambda: {"freeze": 1, "convert": 1},
        description='Stages of a kind that run at once, in all environments together, as JSON: {"convert": 1}.',
    )
    stage_memory_budget_bytes: int = Field(
        0,
        ge=0,
        description="Memory that running stages may take together: a stage waits until what is expected of it fits. "
        "0: what the machine or container has.",
    )
    stage_timeout_seconds: float = Field(3600.0, gt=0, description="A stage that runs longer is stopped.")
    stage_memory_bytes: int = Field(
        0, ge=0, description="Resident memory at which a stage is killed; 0: no limit but the machine's."
    )
    stage_grace_seconds: float = Field(
        5.0, ge=0, description="What a stage may take to end after SIGTERM before it is killed."
    )
    allow_unsafe_models: bool = Field(
        False,
        description="Load Keras models with Lambda layers and custom objects, which run code of whoever made the file.",
    )
    operation_retention_seconds: float = Field(
        30 * 86400.0, ge=0, description="Operations that ended longer ago than this are forgotten; 0 keeps them."
    )
    max_blob_bytes: int = Field(64 << 30, ge=1, description="Size of the largest upload.")
    max_concurrent_uploads: int = Field(16, ge=1, description="Uploads at once; more answer RESOURCE_EXHAUSTED.")
    upload_idle_seconds: float = Field(60.0, gt=0, description="An upload that sends nothing for so long is ended.")
    upload_retention_seconds: float = Field(
        7 * 86400.0, gt=0, description="Unfinished uploads older than this are removed, at the start and with garbage."
    )
    store_url: str = Field(
        "",
        description="Where blobs and engines are kept: a URL that fsspec knows, such as s3://bucket/prefix. The data "
        "folder when empty; else that is a cache.",
    )
    store_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,  # it may hold the store's keys
        description='What the URL\'s client takes, as JSON: {"endpoint_url": "http://minio:9000"}.',
    )
    store_cache_bytes: int = Field(
        0, ge=0, description="What the data folder may hold of an object store's blobs; 0: no bound."
    )
    store_retry_seconds: float = Field(
        60.0, ge=0, description="For how long a call to the object store that fails is tried again."
    )
    gc_interval_seconds: float = Field(86400.0, ge=0, description="Garbage is collected so often; 0: when asked only.")
    stage_result_retention_seconds: float = Field(
        30 * 86400.0, ge=0, description="Results of stages that no job took for so long are forgotten."
    )
    timing_cache_max_bytes: int = Field(
        64 << 20,
        ge=0,
        description="What TensorRT measured while building is kept for the next build, for each GPU, driver and "
        "version; what grows beyond this is begun anew. 0: none is kept.",
    )
    quarantine_retention_seconds: float = Field(
        30 * 86400.0, ge=0, description="Damaged blobs are kept for so long, for somebody to look at."
    )
    executor: Literal["local", "kubernetes"] = Field(
        "local",
        description="kubernetes: stages of the environments in ENGINEHOUSE_WORKER_IMAGES run as Jobs of the cluster, "
        "on a node with the wanted GPU; local: all on this machine.",
    )
    worker_images: dict[str, str] = Field(
        default_factory=dict,
        description='Image of each worker environment that runs in the cluster, as JSON: {"tensorrt": '
        '"registry/enginehouse/worker-tensorrt@sha256:..."}. Results are kept by it: name images by digest, or by tags '
        "that do not move.",
    )
    kubernetes_namespace: str = Field("", description="Namespace of the Jobs; this pod's own when empty.")
    kubernetes_job_template: Path | None = Field(
        None,
        description="YAML of a Pod that is laid under the pods of Jobs: tolerations, volumes, and for its containers "
        "worker, fetch and publish resources and variables. Or a folder: pod.yaml, over which its other *.yaml "
        "files are laid, by name.",
    )
    kubernetes_client_image: str = Field(
        "", description="Image with the enginehouse package, which fetches and publishes files; this pod's when empty."
    )
    kubernetes_optimizer: str = Field(
        "",
        description="host:port of this optimizer as the pods of Jobs reach it; the Service enginehouse-optimizer in "
        "their namespace when empty.",
    )
    kubernetes_max_jobs: int = Field(16, ge=1, description="Jobs at once; more stages wait for one to end.")
    kubernetes_pending_seconds: float = Field(
        1800.0, gt=0, description="For how long a Job's pod may wait for a node before its stage fails."
    )
    kubernetes_image_seconds: float = Field(
        120.0, gt=0, description="For how long an image may fail to be pulled before the stage fails."
    )
