"""Containers as runtimes make them: what `ip` and packets say of what the plugin was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.cni.damage import BREAKS, HEALED, is_named_by_check, is_put_right, state
from tests.net.cni.runtime import Runtime, finish
from tests.net.namespaces import missing
from tests.net.overlay import PREFIX, Overlay, until
from tests.net.packets import Flow, mesh, ping, ping_all

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    with Overlay(2, flags=("--heal-interval", "1h")) as made:
        yield made


@pytest.fixture
def runtime(runtimes: list[Runtime]) -> Runtime:
    return runtimes[0]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_a_container_has_what_its_result_says_and_reaches_those_of_other_hosts(
    runtimes: list[Runtime], version: str
) -> None:
    runtime, other = runtimes
    box, near, far = runtime.box("box"), runtime.box("near").add(), other.box("far").add()
    said = box.call("ADD", version=version)
    assert said.status == 0, said.text
    result = said.content
    assert result["cniVersion"] == version

    link = box.links()["eth0"]
    subnet = runtime.agent.subnet
    assert (link["mtu"], "UP" in link["flags"]) == (1450, True)
    [address] = [one for one in link["addr_info"] if one["family"] == "inet"]
    assert f"{address['local']}/{address['prefixlen']}" == result["ips"][0]["address"]
    assert result["interfaces"][2]["mac"] == link["address"]
    assert result["interfaces"][2]["sandbox"] == box.namespace.path
    [default] = box.namespace.json("ip", "-j", "route", "show", "default")
    gateway = str(subnet.network_address + 1)
    assert default["gateway"] == gateway == result["ips"][0]["gateway"]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": gateway}]

    bridge, port = runtime.bridge(), runtime.ports()[result["interfaces"][1]["name"]]
    assert [one["local"] for one in bridge["addr_info"] if one["family"] == "inet"] == [gateway]
    assert (bridge["mtu"], bridge["address"]) == (1450, result["interfaces"][0]["mac"])
    assert (port["master"], port["address"]) == ("npb-default", result["interfaces"][1]["mac"])
    assert port["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert port["ifalias"].split() == [
        "netplane",
        result["ips"][0]["address"],
        "net",
        "box",
        "eth0",
    ]

    assert None not in ping_all([*mesh([box, near, far]), (box, gateway)])
    assert box.call("CHECK", version=version).status == (version == "0.3.1")
    before = len(runtime.ports())
    for _ in range(2):
        assert box.call("DEL", version=version).status == 0
    assert box.links().keys() == {"lo"}
    assert len(runtime.ports()) == before - 1
    assert runtime.noted() == {"near"}


def test_the_bridge_forwards_where_new_links_are_not_to(runtimes: list[Runtime]) -> None:
    runtime, other = runtimes
    host = runtime.host.namespace
    box, far = runtime.box("box").add(), other.box("far").add()
    host.sysctl("ipv4/conf/default/forwarding", "0")
    try:
        for harm in (
            "ip link del npb-default",
            "sysctl -qw net/ipv4/conf/npb-default/forwarding=0",
        ):
            runtime.agent.pause()
            try:
                host.run(*harm.split())
                assert ping(box, far.address, timeout_s=0.1) is None
            finally:
                runtime.agent.resume()
            until(lambda: ping(box, far.address) is not None, 10, "it forwards")
    finally:
        host.sysctl("ipv4/conf/default/forwarding", "1")


def test_a_container_is_deleted_after_its_namespace(runtime: Runtime) -> None:
    box = runtime.box("box").add()
    box.namespace.close()
    until(lambda: not runtime.ports(), 10, "the kernel takes the pair apart")
    # What the kernel took apart holds no address: nobody need call DEL for that.
    until(lambda: runtime.noted() == set(), 10, "the address is free")
    assert box.call("DEL").status == 0


def test_twenty_calls_at_once_share_no_address(runtime: Runtime) -> None:
    boxes = [runtime.box(f"box-{number}") for number in range(20)]
    calls = [box.start("ADD") for box in boxes]
    for box, call in zip(boxes, calls, strict=True):
        said = finish(call)
        assert said.status == 0, said.text
        box.result = said.content
    assert len({box.address for box in boxes}) == 20
    gateway = str(runtime.agent.subnet.network_address + 1)
    assert None not in ping_all([(box, gateway) for box in boxes])
    deletions = [box.start("DEL") for box in boxes]
    assert [finish(call).status for call in deletions] == [0] * 20
    assert runtime.noted() == set()


def test_of_parallel_calls_for_one_address_one_wins(runtime: Runtime) -> None:
    boxes = [runtime.box(f"box-{number}") for number in range(5)]
    config = {"runtimeConfig": {"ips": [str(runtime.agent.subnet[99])]}}
    calls = [box.start("ADD", config=config) for box in boxes]
    assert sorted(finish(call).status for call in calls) == [0, 1, 1, 1, 1]
    assert sum("eth0" in box.links() for box in boxes) == 1


@pytest.mark.parametrize("path", ["/etc/hostname", "/", "/proc/self/ns/mnt"])
def test_a_path_that_is_no_network_namespace_is_named(runtime: Runtime, path: str) -> None:
    variables = {"CNI_CONTAINERID": "box", "CNI_IFNAME": "eth0", "CNI_NETNS": path}
    said = finish(runtime.start("ADD", {}, **variables))
    assert (said.status, said.content["code"]) == (1, 4)
    assert f"{path} is no network namespace" in said.text
    assert runtime.ports() == {}


def test_addresses_are_not_given_out_again_at_once(runtime: Runtime) -> None:
    seen = []
    for number in range(3):
        box = runtime.box(f"box-{number}").add()
        seen.append(box.address)
        box.delete()
    assert len(set(seen)) == 3


def test_an_interface_that_is_there_already_is_an_error_that_costs_nothing(
    runtime: Runtime,
) -> None:
    box, other = runtime.box("box"), runtime.box("other").add()
    box.namespace.ip("link add eth0 type bridge")
    said = box.call("ADD")
    assert (said.status, said.content["code"]) == (1, 101)
    assert "eth0 already" in said.text
    assert box.links()["eth0"]["linkinfo"]["info_kind"] == "bridge"
    assert len(runtime.ports()) == 1
    assert runtime.noted() == {"other"}
    # The same container twice: the first call's interface is left as it is.
    before = other.links()["eth0"]
    said = other.call("ADD")
    assert (said.status, said.content["code"]) == (1, 101)
    assert other.links()["eth0"]["address"] == before["address"]
    # A second interface is another attachment.
    box.namespace.ip("link del eth0")
    assert len(box.add().result["routes"]) == 1
    said = box.call("ADD", "net1")
    assert (said.status, said.content["routes"]) == (0, [])
    assert box.call("CHECK", "net1").status == 0
    assert box.links().keys() == {"lo", "eth0", "net1"}
    assert box.call("DEL", "net1").status == 0


def test_address_and_mac_are_as_wished_or_refused(runtime: Runtime) -> None:
    subnet = runtime.agent.subnet
    wanted, mac = str(subnet[200]), "02:00:00:00:00:77"
    box = runtime.box("box").add(runtimeConfig={"ips": [wanted], "mac": mac})
    link = box.links()["eth0"]
    assert (link["addr_info"][0]["local"], link["address"]) == (wanted, mac)
    assert ping(box, str(subnet[1])) is not None
    other = runtime.box("other")
    for refused, word in ((wanted, "box"), ("10.99.0.2", "not in"), (str(subnet[1]), "itself")):
        said = other.call("ADD", config={"runtimeConfig": {"ips": [refused]}})
        assert (said.status, said.content["code"]) == (1, 101)
        assert word in said.text
    assert other.links().keys() == {"lo"}
    assert other.call("ADD", arguments=f"IgnoreUnknown=1;IP={subnet[201]}").status == 0
    assert other.address == str(subnet[201])


@pytest.mark.parametrize("name", BREAKS)
def test_check_names_what_is_not_as_it_was_made(runtime: Runtime, name: str) -> None:
    is_named_by_check(runtime, 4, BREAKS[name])


def test_check_of_an_unknown_container_and_changes_of_others(runtime: Runtime) -> None:
    box = runtime.box("box").add()
    # What another plugin of the list has added is in the previous result, or it is nobody's.
    box.namespace.ip("addr add 192.0.2.1/24 dev eth0", "link add more type bridge")
    assert box.call("CHECK").status == 0
    result = box.result
    box.call("DEL")
    said = box.call("CHECK", config={"prevResult": result})
    assert (said.status, said.content["code"]) == (1, 3)


def test_collecting_removes_what_is_not_listed_and_nothing_else(runtime: Runtime) -> None:
    boxes = [runtime.box(f"box-{number}").add() for number in range(3)]
    foreign = runtime.box("foreign").add(name="another")
    assert runtime.collect(boxes[1]).status == 0
    assert [box.links().keys() for box in boxes] == [{"lo"}, {"lo", "eth0"}, {"lo"}]
    assert foreign.links().keys() == {"lo", "eth0"}
    assert ping(boxes[1], foreign.address) is not None
    said = runtime.call("GC", **{"cni.dev/valid-attachments": "junk"})
    assert (said.status, said.content["code"]) == (1, 7)
    assert len(runtime.ports()) == 2
    assert foreign.call("DEL", config={"name": "another"}).status == 0


@pytest.mark.parametrize("name", HEALED)
def test_what_somebody_changes_on_the_host_is_put_right(runtimes: list[Runtime], name: str) -> None:
    is_put_right(runtimes, 4, HEALED[name])


def test_an_agent_that_is_killed_and_started_again_costs_containers_nothing(
    runtimes: list[Runtime],
) -> None:
    runtime, other = runtimes
    agent = runtime.agent
    box, gone, far = runtime.box("box").add(), runtime.box("gone").add(), other.box("far").add()
    before = state(runtime)
    assert runtime.status().status == 0
    with Flow(far, box, 500) as flow:
        agent.kill()
        assert (runtime.status().content["code"], box.call("CHECK").content["code"]) == (50, 11)
        said = runtime.box("late").call("ADD")
        assert (said.status, said.content["code"]) == (1, 11)
        # It goes without an agent; what is left of it goes with the next one.
        assert gone.call("DEL").status == 0
        # Whatever else is there keeps no agent from its work.
        left = agent.folder / "default.cni.deleted"
        (left / "folder").mkdir()
        (left / "junk").write_text('{"network": 1, "container": [2], "ifname": null}')
        (left / "deep").write_text("[" * 200_000)
        until(lambda: flow.received > 100, 20, "packets arrive without an agent")
        agent.start()
        agent.wait_ready()
        until(lambda: len(runtime.ports()) == 1, 10, "what was deleted meanwhile goes")
        mark = flow.received
        until(lambda: flow.received > mark + 50, 20, "packets arrive")
        loss = flow.stop()
    assert loss.missing == ()
    assert gone.links().keys() == {"lo"}
    (left / "folder").rmdir()
    assert list(left.iterdir()) == []
    port = box.result["interfaces"][1]["name"]
    assert state(runtime)["ports"] == {port: before["ports"][port]}
    assert box.call("CHECK").status == 0
    new = runtime.box("new").add()
    assert new.address not in (box.address, gone.address)


def test_containers_keep_a_subnet_that_was_taken_while_there_was_no_agent(
    overlay: Overlay, runtimes: list[Runtime]
) -> None:
    runtime, other = runtimes
    agent, gone = runtime.agent, runtime.box("gone")
    box, far = runtime.box("box").add(), other.box("far").add()
    before = state(runtime)
    key = f"{PREFIX}subnets/{str(agent.subnet).replace('/', '-')}"
    theirs = overlay.registered()[key].decode().replace(agent.host.address, "10.77.0.77")
    agent.terminate()
    overlay.kvctl("put", key, theirs)
    agent.start()
    until(agent.socket.exists, 20, "it answers")
    until(lambda: "no-subnet" in agent.missing(), 20, "it says that its subnet is another's")
    assert "PublicIP 10.77.0.77" in agent.missing()
    said = gone.call("ADD")
    assert (said.status, said.content["code"]) == (1, 11)
    assert "10.77.0.77" in said.text
    assert (box.call("CHECK").status, state(runtime)) == (0, before)
    assert overlay.registered()[key].decode() == theirs
    # It follows the others as always, and has its own back when it is free.
    assert str(other.agent.subnet) in {
        route["dst"] for route in runtime.host.namespace.json("ip", "-j", "route")
    }
    overlay.kvctl("del", key)
    agent.wait_ready()
    until(lambda: None not in ping_all(mesh([box, far])), 20, "they reach each other again")


def test_without_its_file_the_kernel_tells_the_agent_what_there_is(runtime: Runtime) -> None:
    agent = runtime.agent
    box = runtime.box("box").add()
    path = agent.folder / "default.containers.json"
    agent.kill()
    path.write_text("{")
    agent.start()
    agent.wait_ready()
    assert "of no use" in agent.status()["notes"]["containers-file"]
    # Neither forgotten nor given out a second time.
    other = runtime.box("other")
    said = other.call("ADD", config={"runtimeConfig": {"ips": [box.address]}})
    assert (said.status, said.content["code"]) == (1, 101)
    assert "container box" in said.text
    assert box.call("CHECK").status == 0
    assert box.call("DEL").status == 0
    assert runtime.noted() == set()


def test_a_call_that_cannot_be_written_down_leaves_nothing(runtime: Runtime) -> None:
    path = runtime.agent.folder / "default.containers.json"
    path.unlink(missing_ok=True)
    (path / "in the way").mkdir(parents=True)
    try:
        box = runtime.box("box")
        said = box.call("ADD")
        assert (said.status, said.content["code"]) == (1, 5)
        assert box.links().keys() == {"lo"}
        assert runtime.ports() == {}
    finally:
        shutil.rmtree(path)
    assert box.call("ADD").status == 0


def test_who_was_killed_before_it_had_its_answer_has_left_nothing(runtime: Runtime) -> None:
    box = runtime.box("box")
    runtime.agent.pause()
    calls = [box.start("ADD"), runtime.box("other").start("ADD")]
    # They have written all they have to say; what the agent does with it comes after their end.
    until(lambda: all(waits_for_answer(call.pid) for call in calls), 10, "the calls wait")
    for call in calls:
        call.kill()
        call.communicate()
    runtime.agent.resume()
    assert runtime.status().status == 0  # it is behind them
    until(lambda: not runtime.ports(), 10, "nothing is left")
    assert box.call("ADD").status == 0


def waits_for_answer(pid: int) -> bool:
    """Tell whether a process waits in a read of a socket."""
    wait = Path(f"/proc/{pid}/wchan").read_text()
    number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return "unix_stream" in wait or number == "45"


def test_when_the_subnet_is_anothers_containers_stay_and_none_comes(overlay: Overlay) -> None:
    agent = overlay.agents[1]
    with Runtime(agent) as runtime:
        box = runtime.box("box").add()
        [(key, value)] = [
            one for one in overlay.registered().items()
            if one[0].endswith(str(agent.subnet).replace("/", "-"))
        ]  # fmt: skip
        theirs = value.decode().replace(agent.host.address, "10.77.200.1")
        overlay.kvctl("put", key, theirs)
        until(lambda: runtime.status().status == 1, 10, "it is told")
        assert runtime.status().content["code"] == 51
        said = runtime.box("late").call("ADD")
        assert (said.status, said.content["code"]) == (1, 11)
        assert "10.77.200.1" in said.text
        assert box.call("CHECK").status == 0
        assert ping(box, str(agent.subnet[1])) is not None
        overlay.kvctl("put", key, value.decode())
        until(lambda: runtime.status().status == 0, 30, "it is ours again")
        assert box.call("DEL").status == 0


@pytest.mark.parametrize("how", ["drain", "cleanup"])
def test_a_host_that_is_given_back_has_no_bridge_and_no_ports(how: str) -> None:
    network = '{"Network":"10.5.0.0/16","SubnetLen":29,"Backend":{"Type":"vxlan"}}'
    with Overlay(1, network=network) as overlay:
        [agent] = overlay.agents
        with Runtime(agent) as runtime:
            box, *others = [runtime.box(f"box-{number}").add() for number in range(5)]
            # All that the subnet has: the next one has to wait for an end.
            late = runtime.box("late")
            said = late.call("ADD")
            assert (said.status, said.content["code"]) == (1, 102)
            assert runtime.status().content["code"] == 50
            others[0].delete()
            assert late.add().address == others[0].address
            if how == "drain":
                whole = state(runtime)
                # Somebody who insists is told of, and does not keep us busy.
                while "keeps changing" not in agent.status()["notes"].get("containers", ""):
                    agent.host.namespace.ip("addr flush dev npb-default")
                    until(lambda: state(runtime) == whole, 20, "it is put right")
                agent.ctl("drain")
                until(lambda: not agent.is_running, 10, "the agent ends")
            else:
                agent.kill()
                agent.ctl("cleanup", "--state-dir", str(agent.folder))
            assert (runtime.bridge(), runtime.ports()) == ({}, {})
            assert box.links().keys() == {"lo"}
            assert box.call("DEL").status == 0
