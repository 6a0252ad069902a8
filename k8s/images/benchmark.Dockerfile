# SDK, suites and report with every worker environment, to measure on the GPU of its own pod. All worker images must have one
# Python. An environment that is not to be in it: name another's image again, its files are then copied once.
ARG PYTHON_IMAGE=python:3.10-slim-bookworm
ARG ONNXRUNTIME_IMAGE=enginehouse/worker-onnxruntime:0.1.0
ARG TENSORFLOW_IMAGE=enginehouse/worker-tensorflow:0.1.0
ARG TENSORRT_IMAGE=enginehouse/worker-tensorrt:0.1.0
ARG TFTRT_IMAGE=enginehouse/worker-tf-trt:0.1.0

FROM ${ONNXRUNTIME_IMAGE} AS onnxruntime

FROM ${TENSORFLOW_IMAGE} AS tensorflow

FROM ${TENSORRT_IMAGE} AS tensorrt

FROM ${TFTRT_IMAGE} AS tf-trt

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md LICENSE /src/
COPY constraints/ /src/constraints/
COPY enginehouse/ /src/enginehouse/
RUN python3 -m venv /opt/enginehouse/service \
    && pip="/opt/enginehouse/service/bin/python -m pip" \
    && ${pip} install --no-cache-dir -c /src/constraints/main.txt 'setuptools>=77' \
    && ${pip} install --no-cache-dir --no-build-isolation -c /src/constraints/main.txt "/src[cli,bench,report]" s3fs \
    && ${pip} uninstall --yes setuptools pip

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="enginehouse benchmark" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=onnxruntime /opt/enginehouse/workers /opt/enginehouse/workers
COPY --from=tensorflow /opt/enginehouse/workers /opt/enginehouse/workers
COPY --from=tensorrt /opt/enginehouse/workers /opt/enginehouse/workers
COPY --from=tf-trt /opt/enginehouse/workers /opt/enginehouse/workers
COPY --from=build /opt/enginehouse/service /opt/enginehouse/service
COPY --chmod=0755 k8s/images/benchmark.py /opt/enginehouse/service/bin/enginehouse-benchmark
ENV PATH="/opt/enginehouse/service/bin:${PATH}" \
    ENGINEHOUSE_WORKERS_DIR=/opt/enginehouse/workers \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/tmp
USER 10001:10001
ENTRYPOINT ["enginehouse-benchmark"]
