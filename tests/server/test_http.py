"""The HTTP surface of a member: what probes, load balancers and Prometheus see."""

from __future__ import annotations

import json

import pytest

from kvstore.compiled import form
from kvstore.pb import rpc_pb2
from tests.server.raw import Raw, get
from tests.servers import Kvstore

pytestmark = pytest.mark.cluster

CHECKS = ["data_corruption", "serializable_read", "linearizable_read", "non_learner"]


@pytest.mark.parametrize("path", ["/health", "/health?serializable=true"])
def test_health_is_etcds_json(member: Kvstore, path: str) -> None:
    page = get(member.endpoints[0], path)
    assert (page.status, page.kind) == (200, "application/json")
    assert json.loads(page.text) == {"health": "true", "reason": ""}


def test_version_is_what_clients_parse(member: Kvstore) -> None:
    # etcdctl and operators read etcdserver and etcdcluster; Kubernetes wants 3.x.y.
    page = get(member.endpoints[0], "/version")
    versions = json.loads(page.text)
    assert (page.status, page.kind) == (200, "application/json")
    assert versions["modules"] == form()
    assert versions["etcdserver"].count(".") == versions["etcdcluster"].count(".") == 2
    assert versions["etcdserver"].rpartition(".")[0] == versions["etcdcluster"].rpartition(".")[0]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/livez/serializable_read"])
def test_probes_say_ok(member: Kvstore, path: str) -> None:
    page = get(member.endpoints[0], path)
    assert (page.status, page.text) == (200, "ok\n")
    assert page.kind.startswith("text/plain")


def test_a_verbose_probe_lists_its_checks(member: Kvstore) -> None:
    page = get(member.endpoints[0], "/readyz?verbose&exclude=linearizable_read")
    expected = [f"[+]{name} ok" for name in CHECKS]
    expected[2] = "[+]linearizable_read excluded: ok"
    assert page.text.splitlines() == [*expected, "readyz check passed"]


@pytest.mark.parametrize("path", ["/nothing", "/readyz/nothing", "/livez/linearizable_read", "/"])
def test_an_unknown_path_is_not_found(member: Kvstore, path: str) -> None:
    assert get(member.endpoints[0], path).status == 404


@pytest.mark.parametrize("path", ["/health", "/metrics", "/version", "/readyz"])
def test_other_methods_are_refused(member: Kvstore, path: str) -> None:
    assert get(member.endpoints[0], path, "POST").status == 405
    head = get(member.endpoints[0], path, "HEAD")
    assert (head.status, head.text) == (200, "")


def test_without_a_leader_a_member_is_alive_but_not_ready(lonely: Kvstore) -> None:
    # A liveness probe that fails here would have an orchestrator restart the very members that
    # wait for their peers.
    endpoint = lonely.endpoints[0]
    health = get(endpoint, "/health")
    assert health.status == 503
    assert json.loads(health.text) == {"health": "false", "reason": "RAFT NO LEADER"}
    assert get(endpoint, "/livez").status == 200
    ready = get(endpoint, "/readyz")
    assert ready.status == 503
    lines = ready.text.splitlines()
    assert [line[:3] for line in lines[:4]] == ["[+]", "[+]", "[-]", "[+]"]
    assert lines[2].startswith("[-]linearizable_read failed: etcdserver: request timed out")
    assert lines[4] == "readyz check failed"
    assert get(endpoint, "/readyz?exclude=linearizable_read").status == 200


def test_alarms_show_in_health_unless_excluded(member: Kvstore, raw: Raw) -> None:
    def alarm(action: int, kind: int) -> None:
        raw.call("Alarm", rpc_pb2.AlarmRequest(action=action, memberID=5, alarm=kind))

    endpoint = member.endpoints[0]
    alarm(rpc_pb2.AlarmRequest.ACTIVATE, rpc_pb2.CORRUPT)
    try:
        page = get(endpoint, "/health")
        assert page.status == 503
        assert json.loads(page.text)["reason"] == "ALARM CORRUPT"
        assert get(endpoint, "/health?exclude=CORRUPT").status == 200
        assert get(endpoint, "/health?exclude=NOSPACE").status == 503
        assert "[-]data_corruption failed" in get(endpoint, "/readyz").text
        assert get(endpoint, "/livez").status == 200
    finally:
        alarm(rpc_pb2.AlarmRequest.DEACTIVATE, rpc_pb2.CORRUPT)
    assert get(endpoint, "/readyz").status == 200
