"""Settings: every flag is honoured or refused, whether it comes as flag, environment or file."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kvstore.cli import serve as serving
from kvstore.cli.flags import NOT_OFFERED, OURS, check_environment, without_etcd
from kvstore.cli.kvstore import main
from kvstore.server.config import ConfigError, ServerConfig
from kvstore.server.identity import InitialClusterError
from kvstore.server.startup import StartError
from kvstore.server.tls import server_context
from tests.certificates import Authority

LISTED = """
name data-dir listen-client-urls advertise-client-urls listen-peer-urls initial-advertise-peer-urls
initial-cluster initial-cluster-state initial-cluster-token strict-reconfig-check max-learners
heartbeat-interval election-timeout
snapshot-count quota-backend-bytes max-request-bytes max-txn-ops log-level metrics cert-file
key-file
trusted-ca-file client-cert-auth config-file
"""
"""The flags that the project promises."""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ETCD_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """Return the settings that members were started with; none is really started."""
    configs: list[ServerConfig] = []

    def run_member(config: ServerConfig) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(serving, "run_member", run_member)
    return configs


def serve(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it printed."""
    done = CliRunner().invoke(main, ["serve", *arguments], env=environment)
    return done.exit_code, done.output


def test_the_promised_flags_are_offered_and_no_flag_is_in_both_lists() -> None:
    assert set(LISTED.split()) == OURS - {"enable-failpoints"}
    assert not OURS & NOT_OFFERED


VALUES: dict[str, tuple[str, Any]] = {
    "name": ("m1", "m1"),
    "data_dir": ("/tmp/x", "/tmp/x"),
    "listen_client_urls": ("http://127.0.0.1:1", "http://127.0.0.1:1"),
    "advertise_client_urls": ("http://a:1", "http://a:1"),
    "listen_peer_urls": ("http://127.0.0.1:2", "http://127.0.0.1:2"),
    "initial_advertise_peer_urls": ("http://a:2", "http://a:2"),
    "initial_cluster": ("m1=http://a:2", "m1=http://a:2"),
    "initial_cluster_state": ("existing", "existing"),
    "initial_cluster_token": ("t", "t"),
    "strict_reconfig_check": ("false", False),
    "max_learners": ("3", 3),
    "heartbeat_interval": ("50", 50),
    "election_timeout": ("700", 700),
    "snapshot_count": ("7", 7),
    "quota_backend_bytes": ("12345678", 12345678),
    "max_request_bytes": ("4096", 4096),
    "max_txn_ops": ("9", 9),
    "log_level": ("warn", "warn"),
    "metrics": ("extensive", "extensive"),
    "cert_file": ("c", "c"),
    "key_file": ("k", "k"),
    "trusted_ca_file": ("t", "t"),
    "client_cert_auth": ("true", True),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("way", ["flag", "one dash", "environment", "file"])
def test_every_setting_arrives(
    name: str, way: str, started: list[ServerConfig], tmp_path: Path
) -> None:
    text, value = VALUES[name]
    flag = name.replace("_", "-")
    if way == "flag":
        code, output = serve(f"--{flag}", text)
    elif way == "one dash":
        # Go's flag package takes it, so etcd's users write it.
        code, output = serve(f"-{flag}={text}")
    elif way == "environment":
        code, output = serve(**{f"ETCD_{name.upper()}": text})
    else:
        quoted = f'"{text}"' if isinstance(value, str) else text
        (tmp_path / "c.yaml").write_text(f"{flag}: {quoted}\n")
        code, output = serve("--config-file", str(tmp_path / "c.yaml"))
    assert (code, output) == (0, "")
    [config] = started
    assert getattr(config, name) == value


def test_a_flag_wins_over_the_environment(started: list[ServerConfig]) -> None:
    assert serve("--name", "flag", ETCD_NAME="environment")[0] == 0
    assert started[0].name == "flag"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--nmae", "x"], "Did you mean '--name'?"),
        (["-nmae", "x"], "Did you mean '--name'?"),
        (["--auto-compaction-mode=periodic"], "etcd's flag --auto-compaction-mode is not offered"),
        (["--peer-cert-file", "x"], "etcd's flag --peer-cert-file is not offered"),
        (["--experimental-initial-corrupt-check"], "is not offered by kvstore; leave it out"),
        (["extra"], "unexpected extra argument"),
        (["--max-txn-ops"], "requires an argument"),
        (["--client-cert-auth=maybe"], "not a valid boolean"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    arguments: list[str], advice: str, started: list[ServerConfig]
) -> None:
    code, output = serve(*arguments)
    assert code == 2
    assert advice in output
    assert started == []


def test_an_unknown_variable_is_told_and_a_flag_of_etcd_refused(
    started: list[ServerConfig],
) -> None:
    # Container platforms set variables like ETCD_PORT on their own: no reason to refuse.
    assert list(check_environment({"ETCD_PORT": "1", "ETCD_NMAE": "x", "ETCDCTL_API": "3"})) == [
        "unrecognized environment variable ETCD_NMAE=x; did you mean ETCD_NAME?",
        "unrecognized environment variable ETCD_PORT=1",
    ]
    with pytest.raises(click.UsageError, match=r"ETCD_AUTO_COMPACTION_RETENTION .* unset it"):
        list(check_environment({"ETCD_AUTO_COMPACTION_RETENTION": "1"}))
    code, output = serve(ETCD_AUTO_COMPACTION_RETENTION="1")
    assert code == 2
    assert "not offered" in output
    assert started == []


def test_a_local_cluster_hides_the_environment_of_one_member() -> None:
    # ETCD_CONFIG_FILE would make every member of `kvstore up` the same one.
    environment = {"ETCD_CONFIG_FILE": "x", "ETCDCTL_API": "3", "PATH": "p"}
    assert without_etcd(environment) == {"ETCDCTL_API": "3", "PATH": "p"}


def test_beside_a_config_file_nothing_is_silently_ignored(
    tmp_path: Path, started: list[ServerConfig]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: file\n")
    code, output = serve("--config-file", str(path), "--name", "flag")
    assert code == 2
    assert "--name has no effect beside --config-file" in output
    assert started == []
    code, output = serve("--config-file", str(path), ETCD_NAME="environment")
    assert code == 0
    assert "warning: ETCD_NAME has no effect beside --config-file" in output
    assert started[0].name == "file"


def test_etcds_group_of_tls_flags_is_read(tmp_path: Path, started: list[ServerConfig]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("client-transport-security:\n  cert-file: c\n  client-cert-auth: true\n")
    assert serve("--config-file", str(path)) == (0, "")
    assert (started[0].cert_file, started[0].client_cert_auth) == ("c", True)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("nmae: x", "did you mean name?"),
        ("auto-tls: true", "etcd's flag, not offered by kvstore"),
        ("heartbeat-interval: soon", "must be of type int"),
        ("client-cert-auth: 1", "must be of type bool"),
        ("- name", "expected flag names and their values"),
        ("name: [", "while parsing"),
        ("client-transport-security: x", "must hold flag names and values"),
    ],
)
def test_a_wrong_config_file_is_explained(
    text: str, advice: str, tmp_path: Path, started: list[ServerConfig]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    code, output = serve("--config-file", str(path))
    assert code == 1
    assert advice in output
    assert started == []


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"name": ""}, "--name"),
        ({"name": "a=b"}, "--name"),
        ({"log_level": "loud"}, "--log-level"),
        ({"initial_cluster_state": "old"}, "neither new nor existing"),
        ({"heartbeat_interval": 5}, "at least 10"),
        ({"election_timeout": 499}, "at least 5 times"),
        ({"election_timeout": 50_001}, "at most 50000"),
        ({"snapshot_count": 0}, "at least 1"),
        ({"quota_backend_bytes": -1}, "at least 0"),
        ({"quota_backend_bytes": 1 << 60}, "at most 17592186044416 (16 TiB)"),
        ({"max_request_bytes": 1023}, "at least 1024"),
        ({"max_request_bytes": (32 << 20) + 1}, "at most 33554432"),
        ({"max_txn_ops": 0}, "at least 1"),
        ({"listen_client_urls": "http://example.com:1"}, "IP address or localhost"),
        ({"listen_client_urls": "unix:///x"}, "is not of the form"),
        ({"listen_client_urls": "http://127.0.0.1:99999"}, "out of range"),
        ({"listen_client_urls": "http://127.0.0.1:1/path"}, "must not have a path"),
        ({"listen_client_urls": " , "}, "at least one URL"),
        ({"listen_peer_urls": "https://127.0.0.1:1"}, "not supported yet"),
        ({"advertise_client_urls": "http://0.0.0.0:1"}, "name a real address"),
        ({"cert_file": "c", "key_file": "k"}, "act on https only"),
        ({"trusted_ca_file": "t"}, "act on https only"),
        ({"listen_client_urls": "https://127.0.0.1:1", "cert_file": "c"}, "--key-file"),
    ],
)
def test_a_wrong_setting_names_its_flag(settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ServerConfig(**settings).check()
    assert advice in str(refused.value)
    assert "--" in str(refused.value)


@pytest.mark.parametrize(
    ("cluster", "advice"),
    [
        ("default=http://localhost:9", "must be the same"),
        ("a=http://localhost:2380", "does not name this member"),
        ("default", "is not of the form NAME=URL"),
        ("default=http://localhost:2380,b=http://localhost:2380", "stands twice"),
    ],
)
def test_an_initial_cluster_that_does_not_fit_is_explained(cluster: str, advice: str) -> None:
    with pytest.raises(InitialClusterError) as refused:
        ServerConfig(initial_cluster=cluster).check()
    assert advice in str(refused.value)


def test_what_follows_from_the_settings() -> None:
    config = ServerConfig(name="m", heartbeat_interval=100, election_timeout=1050).check()
    assert config.data_dir == "m.kvstore"
    assert config.advertise_client_urls == config.listen_client_urls
    assert config.quota_bytes == 2 << 30
    assert config.election_ticks == 11
    assert config.request_timeout_s == pytest.approx(7.1)
    assert config.lease_ttl_min_s == 2


@pytest.mark.parametrize("flags", [{}, {"client_cert_auth": True}])
def test_an_authority_means_that_clients_are_checked(
    tmp_path: Path, flags: dict[str, bool]
) -> None:
    # etcd checks clients with --trusted-ca-file alone; who moves here must not open the port.
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    config = ServerConfig(cert_file=certificate, key_file=key)
    assert server_context(config).verify_mode is ssl.CERT_NONE
    config = ServerConfig(
        cert_file=certificate, key_file=key, trusted_ca_file=authority.file, **flags
    )
    assert server_context(config).verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("missing", ["cert_file", "key_file", "trusted_ca_file"])
def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, missing: str) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    files = {"cert_file": certificate, "key_file": key, "trusted_ca_file": authority.file}
    (tmp_path / "bad.pem").write_text("no certificate")
    files[missing] = str(tmp_path / "bad.pem")
    with pytest.raises(StartError, match=f"--{missing.replace('_', '-')} .*cannot be used"):
        server_context(ServerConfig(**files))
