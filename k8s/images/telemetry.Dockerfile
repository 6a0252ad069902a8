# The node agent and, as enginehouse-telemetry-aggregator, the aggregator. No framework, no GPU library: the driver's NVML is
# mounted by the NVIDIA container runtime.
ARG PYTHON_IMAGE=python:3.10-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md LICENSE /src/
COPY constraints/ /src/constraints/
COPY enginehouse/ /src/enginehouse/
COPY services/ /src/services/
RUN python3 -m venv /opt/enginehouse/service \
    && pip="/opt/enginehouse/service/bin/python -m pip" \
    && ${pip} install --no-cache-dir -c /src/constraints/main.txt 'setuptools>=77' \
    && ${pip} install --no-cache-dir --no-build-isolation -c /src/constraints/main.txt /src "/src/services/telemetry[aggregator]" \
    && ${pip} uninstall --yes setuptools pip

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="enginehouse telemetry" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"

COPY --from=build /opt/enginehouse/service /opt/enginehouse/service
ENV PATH="/opt/enginehouse/service/bin:${PATH}" \
    HOME=/tmp
USER 10001:10001
ENTRYPOINT ["enginehouse-telemetry"]
