"""The asynchronous client: the one implementation, on grpc.aio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from enginehouse.client.addresses import INFERENCE, OPTIMIZER, TELEMETRY, Addresses
from enginehouse.client.aio_calls import InferenceCalls, ProjectCalls
from enginehouse.client.balancing.discovery import split_addresses
from enginehouse.client.balancing.policy import Balancing
from enginehouse.client.blobs import AsyncBlobs
from enginehouse.client.calibrations import AsyncCalibrations
from enginehouse.client.cluster import NAMESPACE, Cluster, cluster_credentials, find_cluster, named
from enginehouse.client.connection import TLS, Endpoint
from enginehouse.client.datasets import AsyncDatasets
from enginehouse.client.engines import AsyncEngines
from enginehouse.client.health import is_serving
from enginehouse.client.inference import AsyncInference
from enginehouse.client.jobs import AsyncJobs
from enginehouse.client.models import AsyncModels
from enginehouse.client.serving import AsyncServing
from enginehouse.client.store import AsyncStore
from enginehouse.client.telemetry import AsyncTelemetry
from enginehouse.names import DEFAULT_PROJECT, check_id
from enginehouse.rpc.channels import Token, token_of


class AsyncClient(ProjectCalls, InferenceCalls):
    """A client of a project's optimizer, inference servers and telemetry agent. `Client` is the same without `await`.

    Channels are made when they are first used. Every call raises `EnginehouseError`, of the subclass that stands for
    what went wrong.

    Args:
        optimizer: address of the optimizer, "host:port".
        inference: address of an inference server, or several (a list, or one text with commas). Requests are spread
            over them, and over the servers that a name with several addresses stands for.
        telemetry: address of a telemetry agent.
        project: the project that ids belong to.
        timeout: seconds that a single call may take (uploads, downloads and streams may take longer).
        tls: how to speak TLS; plain text when None.
        token: goes with every call: a text, or a `Token` that says more.
        token_file: the same in a file, which is read again as it changes (a Kubernetes service account's).
        balancing: how requests are spread over inference servers and sent again; the defaults when None.
    """

    def __init__(
        self,
        optimizer: str = OPTIMIZER,
        inference: str | Sequence[str] = INFERENCE,
        telemetry: str = TELEMETRY,
        *,
        project: str = DEFAULT_PROJECT,
        timeout: float = 30.0,
        tls: TLS | None = None,
        token: str | Token | None = None,
        token_file: Path | str | None = None,
        balancing: Balancing | None = None,
    ) -> None:
        self._cluster: Cluster | None = None
        parent = f"projects/{check_id(project, 'project')}"
        self.project = project
        servers = split_addresses(inference)
        self.addresses = Addresses(optimizer, ",".join(servers), telemetry)
        bearer = token_of(token, token_file)
        self._optimizer = Endpoint(optimizer, timeout=timeout, tls=tls, token=bearer)
        self._telemetry = Endpoint(telemetry, timeout=timeout, tls=tls, token=bearer)
        self._infer = AsyncInference(servers, timeout=timeout, tls=tls, policy=balancing or Balancing(), token=bearer)
        self.blobs = blobs = AsyncBlobs(self._optimizer, parent)
        self.models = AsyncModels(self._optimizer, blobs, parent)
        self.datasets = AsyncDatasets(self._optimizer, blobs, parent)
        self.engines = AsyncEngines(self._optimizer, blobs, parent)
        self.calibrations = AsyncCalibrations(blobs, self.engines.get)
        self.jobs = AsyncJobs(self._optimizer, parent)
        self.store = AsyncStore(self._optimizer, parent)
        self.serving = AsyncServing(self._optimizer, self._infer, parent)
        self.telemetry = AsyncTelemetry(self._telemetry, parent)

    @classmethod
    def from_environment(
        cls,
        variables: Mapping[str, str] | None = None,
        *,
        timeout: float = 30.0,
        balancing: Balancing | None = None,
    ) -> AsyncClient:
        """A client of what the environment names.

        ENGINEHOUSE_OPTIMIZER, ENGINEHOUSE_INFERENCE and ENGINEHOUSE_TELEMETRY are addresses (of inference servers
        several, with commas), ENGINEHOUSE_PROJECT the project, ENGINEHOUSE_CLIENT_CA, _CERTIFICATE and _KEY PEM files,
        ENGINEHOUSE_CLIENT_TOKEN or _TOKEN_FILE the token (docs/security.md has more).
        With ENGINEHOUSE_CLIENT_NAMESPACE it is the Enginehouse of that namespace, as `from_kubernetes` finds it.
        What they do not say comes from the stack that `enginehouse up` started in ENGINEHOUSE_HOME (or `.enginehouse`
        here), then from the defaults.
        """
        from enginehouse.client.addresses import from_environment

        found = from_environment(variables)
        if found.namespace:
            return cls._of_cluster(
                find_cluster(found.namespace), found.project, timeout, found.tls, found.credentials.token, balancing
            )
        return cls(
            found.addresses.optimizer,
            found.addresses.inference,
            found.addresses.telemetry,
            project=found.project,
            timeout=timeout,
            tls=found.tls,
            token=found.credentials.token,
            balancing=balancing,
        )

    @classmethod
    async def from_kubernetes(
        cls,
        namespace: str = NAMESPACE,
        *,
        project: str = DEFAULT_PROJECT,
        timeout: float = 30.0,
        tls: TLS | None = None,
        token: str | Token | None = None,
        token_file: Path | str | None = None,
        balancing: Balancing | None = None,
        release: str = "enginehouse",
        context: str = "",
    ) -> AsyncClient:
        """A client of the Enginehouse in a namespace of a Kubernetes cluster.

        In a pod it calls the services by their names. Elsewhere it goes through `kubectl port-forward`, one for each
        service, which end when the client is closed.

        Args:
            namespace: of the services.
            tls: when None, what ENGINEHOUSE_CLIENT_CA and its like say, else a CA at
                /var/run/secrets/enginehouse/ca.crt, else plain text.
            token, token_file: when None, what ENGINEHOUSE_CLIENT_TOKEN_FILE says, else
                /var/run/secrets/enginehouse/token, else none.
            release: what the services' names begin with.
            context: of the kubeconfig; the current one when empty.

        Raises:
            FailedPreconditionError: there is no kubectl, or it knows no cluster.
            NotFoundError: there is no Enginehouse in the namespace.
            UnavailableError: the cluster does not answer.
        """
        cluster = await asyncio.to_thread(find_cluster, namespace, release=release, context=context)
        return cls._of_cluster(cluster, project, timeout, tls, token_of(token, token_file), balancing)

    @classmethod
    def _of_cluster(
        cls,
        cluster: Cluster,
        project: str,
        timeout: float,
        tls: TLS | None,
        token: Token | None,
        balancing: Balancing | None,
    ) -> AsyncClient:
        try:
            found = cluster_credentials(tls, token)
            where = cluster.addresses
            client = cls(
                where.optimizer,
                where.inference,
                where.telemetry,
                project=project,
                timeout=timeout,
                tls=found.tls,
                token=found.token,
                balancing=balancing,
            )
        except BaseException:
            cluster.close()
            raise
        client._cluster = cluster
        if cluster.names is not None:
            client._optimizer.tls = named(found.tls, cluster.names.optimizer)
            client._telemetry.tls = named(found.tls, cluster.names.telemetry)
            client._infer.expect_name(cluster.names.inference)
        return client

    async def ready(self, timeout: float = 5.0) -> dict[str, bool]:
        """Whether each service answers within `timeout` seconds and says that it can work, by name."""
        return {
            "optimizer": await is_serving(self._optimizer, timeout),
            "inference": await self._infer.server_ready(timeout),
            "telemetry": await is_serving(self._telemetry, timeout),
        }

    async def suspend(self) -> None:
        """Close the channels until they are next used. gRPC's do not survive a fork, so `Client` does it before one."""
        await self._infer.suspend()
        for endpoint in (self._optimizer, self._telemetry):
            await endpoint.suspend()

    async def close(self) -> None:
        """Close the channels; calls in flight are cancelled. A second close does nothing."""
        await self._infer.close()
        for endpoint in (self._optimizer, self._telemetry):
            await endpoint.close()
        if self._cluster is not None:
            await asyncio.to_thread(self.leave_cluster)

    def leave_cluster(self) -> None:
        """End the port-forwards of `from_kubernetes`."""
        if self._cluster is not None:
            self._cluster.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
