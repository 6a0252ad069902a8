# A worker environment: a framework and enginehouse_worker, nothing else. ENVIRONMENT is its name; EXTRA the packages that it
# gets, where another's stand in for its own (tensorrt-rtx for tensorrt on a machine that cannot have TensorRT's wheels).
ARG PYTHON_IMAGE=python:3.10-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG ENVIRONMENT
ARG EXTRA=${ENVIRONMENT}
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints/ /src/constraints/
COPY worker/ /src/worker/
RUN python3 -m venv "/opt/enginehouse/workers/${ENVIRONMENT}" \
    && pip="/opt/enginehouse/workers/${ENVIRONMENT}/bin/python -m pip" \
    && ${pip} install --no-cache-dir -c "/src/constraints/${EXTRA}.txt" 'setuptools>=77' \
    && ${pip} install --no-cache-dir --no-build-isolation -c "/src/constraints/${EXTRA}.txt" "/src/worker[${EXTRA}]" \
    && ${pip} uninstall --yes setuptools pip
# What no engine needs: packages' own tests (numpy.testing imports numpy's), headers, libclang. A layer of this stage, so that
# the one above stays in the cache. Compiled modules stay: on a read-only root nothing else would make them.
RUN packages=$(echo /opt/enginehouse/workers/*/lib/python3*/site-packages) \
    && rm -rf "${packages}"/onnx/backend/test "${packages}"/tensorflow/include "${packages}"/clang \
    && find "${packages}" -type d -name tests -not -path '*/numpy/*' -prune -exec rm -rf {} +

FROM ${PYTHON_IMAGE}
ARG ENVIRONMENT
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="enginehouse worker ${ENVIRONMENT}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/enginehouse /opt/enginehouse
# What the NVIDIA container runtime mounts beside the devices that the device plugin gives.
ENV PATH="/opt/enginehouse/workers/${ENVIRONMENT}/bin:${PATH}" \
    ENGINEHOUSE_WORKERS_DIR=/opt/enginehouse/workers \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/tmp
USER 10001:10001
CMD ["python", "-m", "enginehouse_worker", "--help"]
