"""Every method of every service needs what somebody wrote down; bindings give it, or nothing does."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from google.longrunning import operations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2

import enginehouse.v1
from enginehouse.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from enginehouse.rpc.authorization import ANONYMOUS, Principal, resource_of
from enginehouse.rpc.role_bindings import RoleAuthorizer, parse_bindings
from enginehouse.rpc.roles import _METHODS, Access, Role, needed_for


def services() -> Iterator[ServiceDescriptor]:
    modules = [
        importlib.import_module(f"enginehouse.v1.{m.name}") for m in pkgutil.iter_modules(enginehouse.v1.__path__)
    ]
    for module in (*modules, operations_pb2, health_pb2, reflection_pb2, service_pb2):
        if hasattr(module, "DESCRIPTOR"):
            yield from module.DESCRIPTOR.services_by_name.values()


def methods() -> dict[str, MethodDescriptor]:
    return {f"/{service.full_name}/{method.name}": method for service in services() for method in service.methods}


def test_every_method_of_every_service_needs_something_that_was_decided() -> None:
    found = methods()
    assert len(found) > 60
    missing = [method for method in found if needed_for(method) is None]
    assert not missing, f"enginehouse/rpc/roles.py does not say which role these need: {missing}"
    newer = {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/List"}
    assert set(_METHODS) - set(found) <= newer, "methods that no service has"


def test_only_health_is_open() -> None:
    opened = {method.split("/")[1] + "/" + method.split("/")[2] for method, n in _METHODS.items() if n is Access.OPEN}
    assert opened == {
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "inference.GRPCInferenceService/ServerLive",
        "inference.GRPCInferenceService/ServerReady",
    }


def test_every_request_that_needs_a_role_names_its_project() -> None:
    """Or a binding for one project would not reach it. The inference service says it in its own way."""
    for method, descriptor in methods().items():
        if not isinstance(needed_for(method), tuple) or method.startswith("/inference."):
            continue
        request = GetMessageClass(descriptor.input_type)()
        for field in descriptor.input_type.fields:
            if field.name in ("name", "parent") and field.type == FieldDescriptor.TYPE_STRING:
                setattr(request, field.name, "projects/mine")
                break
        else:
            (first,) = [field for field in descriptor.input_type.fields if field.number == 1]
            getattr(request, first.name).name = "projects/mine/things/x"
        assert resource_of(method, request).startswith("projects/mine"), method


WEB = Principal("system:serviceaccount:apps:web", True, ("system:serviceaccounts", "system:serviceaccounts:apps"))
CI = Principal("ci", True, ("builders",))
NOBODY = Principal("nobody", True)
ROLES = b"""
bindings:
  - roles: [infer]
    principals: ["system:serviceaccount:apps:web"]
    projects: [shop]
  - roles: [submit, load]
    groups: [builders]
  - roles: [telemetry]
    groups: ["system:authenticated"]
  - roles: [admin]
    principals: [root]
"""
INFER = "/inference.GRPCInferenceService/ModelInfer"
OPTIMIZE = "/enginehouse.v1.Optimizer/Optimize"
GET = "/enginehouse.v1.Models/GetModel"
COLLECT = "/enginehouse.v1.Store/CollectGarbage"
SNAPSHOT = "/enginehouse.v1.Telemetry/GetSnapshot"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health/Check"
IN_SHOP = "projects/shop/servingConfigs/resnet"


@pytest.mark.parametrize(
    ("principal", "method", "resource", "allowed"),
    [
        (WEB, INFER, IN_SHOP, True),
        (WEB, INFER, "projects/bank/servingConfigs/resnet", False),
        (WEB, INFER, "", False),  # what names no project is in none
        (WEB, INFER, "projects/shopping/x/y", False),
        (WEB, GET, IN_SHOP, False),
        (WEB, "/inference.GRPCInferenceService/RepositoryIndex", "projects/shop", True),
        (WEB, SNAPSHOT, "projects/shop/nodes/a", True),
        (WEB, REFLECTION, "", True),
        (CI, OPTIMIZE, "projects/any", True),
        (CI, GET, "", True),  # for all projects, so for none too
        (CI, INFER, IN_SHOP, False),
        (CI, COLLECT, "projects/any", False),
        (Principal("root", True), COLLECT, "projects/any", True),
        (Principal("root", True), INFER, IN_SHOP, True),
        (Principal("root"), COLLECT, "projects/any", False),  # a name alone is no proof
        (Principal("web", True, ("builders2",)), OPTIMIZE, "projects/any", False),
        (NOBODY, SNAPSHOT, "projects/any/nodes/a", True),
        (NOBODY, OPTIMIZE, "projects/any", False),
        (Principal("root", True), "/enginehouse.v1.Models/NoSuch", "projects/any", False),
        (ANONYMOUS, HEALTH, "", True),
        (ANONYMOUS, SNAPSHOT, "projects/any/nodes/a", False),
        (ANONYMOUS, REFLECTION, "", False),
        (ANONYMOUS, "/enginehouse.v1.Models/NoSuch", "", False),
    ],
)
async def test_what_bindings_give(principal: Principal, method: str, resource: str, allowed: bool) -> None:
    authorizer = RoleAuthorizer(lambda: parse_bindings(ROLES))
    if allowed:
        await authorizer.authorize(principal, method, resource)
        return
    expected = PermissionDeniedError if principal.authenticated else UnauthenticatedError
    with pytest.raises(expected) as caught:
        await authorizer.authorize(principal, method, resource)
    assert "resnet" not in caught.value.message and "builders" not in caught.value.message


async def test_strangers_may_what_the_file_says() -> None:
    content = b'bindings: [{roles: [infer], groups: ["system:unauthenticated"]}]'
    authorizer = RoleAuthorizer(lambda: parse_bindings(content))
    await authorizer.authorize(ANONYMOUS, INFER, IN_SHOP)
    with pytest.raises(UnauthenticatedError):
        await authorizer.authorize(ANONYMOUS, GET, IN_SHOP)
    with pytest.raises(PermissionDeniedError):
        await authorizer.authorize(NOBODY, INFER, IN_SHOP)


async def test_admin_may_everything() -> None:
    authorizer = RoleAuthorizer(lambda: parse_bindings(ROLES))
    for method in methods():
        await authorizer.authorize(Principal("root", True), method, "projects/x")
    assert {role.value for role in Role} == {"infer", "read", "load", "submit", "telemetry", "admin"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected one key, bindings"),
        (b"bindings: {}", "expected one key, bindings"),
        (b"bindings: []\nmore: 1", "expected one key, bindings"),
        (b"bindings: [x]", r"bindings\[0\]: expected the keys"),
        (b"bindings: [{roles: [infer], principals: [a], project: [x]}]", "has project: expected only"),
        (b"bindings: [{roles: [root], principals: [a]}]", "root: expected of infer"),
        (b"bindings: [{principals: [a]}]", "none: expected of infer"),
        (b"bindings: [{roles: [infer]}]", "expected principals or groups"),
        (b"bindings: [{roles: [infer], principals: a}]", "principals: expected a list of texts"),
        (b"bindings: [{roles: [infer], principals: [1]}]", "principals: expected a list of texts"),
        (b"bindings: [{roles: [infer], principals: [a], projects: []}]", "projects is empty"),
        (b"bindings: [", "not YAML"),
        (b"\xff", "not YAML"),
        (b"bindings: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_wrong_roles_file_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        parse_bindings(content)
