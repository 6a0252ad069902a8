"""The SDK: `AsyncClient`, its synchronous face `Client`, and the values they take and return."""

from __future__ import annotations

from enginehouse.client.aio import AsyncClient
from enginehouse.client.balancing.policy import Balancing, Hedging, Retry
from enginehouse.client.connection import TLS
from enginehouse.client.jobs import AsyncJob
from enginehouse.client.sync import Client
from enginehouse.client.sync_resources import Job
from enginehouse.client.values import *  # noqa: F403 - the values' own __all__
from enginehouse.client.values import __all__ as _values
from enginehouse.rpc.channels import Token

__all__ = ["TLS", "AsyncClient", "AsyncJob", "Balancing", "Client", "Hedging", "Job", "Retry", "Token", *_values]
