"""What hypothesis draws programs from: few keys and near revisions, so that steps meet.

Steps are drawn one by one and independent of each other, so that each can be taken away.
"""

from __future__ import annotations

from hypothesis import strategies as st

from kvstore.pb import rpc_pb2
from tests.compat.random.side import REQUEST_SIZE_MAX, TXN_OPS_MAX
from tests.compat.random.steps import (
    COMPACTED,
    CURRENT,
    Call,
    ChosenLease,
    Expiry,
    KeepAlive,
    Raw,
    Step,
    Watch,
)

# With the runner's own no more than 12, see `differences.NOT_DRAWN`.
KEYS = (b"a", b"aa", b"a\0", b"ab", b"b", b"b\xff", b"c", b"\xff", b"\0")
LEASES = (7, 8, -9)
FUTURE = 1 << 40

keys = st.sampled_from(KEYS)
ends = st.sampled_from((b"", b"\0", *KEYS, b"z", b"\xff\xff"))
flags = st.booleans()
rarely = st.integers(0, 15).map(lambda number: number == 11)
seldom = st.integers(0, 99).map(lambda number: number == 57)
values = st.sampled_from((b"", b"v", b"w", b"\0\xff", b"x" * 200))
leases = st.sampled_from((0, 0, 0, 0, *LEASES, *LEASES, 99))
numbers = st.integers(-1, 4)
revisions = st.one_of(
    st.just(0),
    st.integers(-6, 0).map(lambda back: CURRENT + back),
    st.integers(-2, 2).map(lambda back: COMPACTED + back),
    st.sampled_from((0, 1, 2, 5, -1, CURRENT + 1, CURRENT + 2, FUTURE)),
)


@st.composite
def puts(draw: st.DrawFn, *, ignores: bool = True) -> rpc_pb2.PutRequest:
    request = rpc_pb2.PutRequest(key=draw(keys), prev_kv=draw(flags))
    if ignores and draw(rarely):
        request.ignore_value = True
    if ignores and draw(rarely):
        request.ignore_lease = True
    if not request.ignore_value or draw(rarely):
        request.value = draw(values)
    if not request.ignore_lease or draw(rarely):
        request.lease = draw(leases)
    if draw(seldom):
        request.key = b""
    return request


@st.composite
def deletes(draw: st.DrawFn, *, from_key: bool = True) -> rpc_pb2.DeleteRangeRequest:
    request = rpc_pb2.DeleteRangeRequest(key=draw(keys), prev_kv=draw(flags))
    if draw(rarely):
        request.range_end = draw(ends)
        if request.range_end == b"\0" and not from_key:
            request.range_end = b"z"
    if draw(seldom):
        request.key = b""
    return request


@st.composite
def ranges(draw: st.DrawFn) -> rpc_pb2.RangeRequest:
    request = rpc_pb2.RangeRequest(key=draw(keys), range_end=draw(ends))
    if draw(flags):
        request.key = request.range_end = b"\0"
    if draw(flags):
        request.revision = draw(revisions)
    if draw(flags):
        request.limit = draw(numbers)
    if draw(flags):
        request.sort_order = draw(st.integers(0, 2))
        request.sort_target = draw(st.integers(0, 4))
        if draw(rarely):
            request.sort_target = draw(st.sampled_from((5, -1)))
    if draw(rarely):
        request.keys_only = True
    if draw(rarely):
        request.count_only = True
    if draw(rarely):
        request.serializable = True
    for name in ("min_mod", "max_mod", "min_create", "max_create"):
        if draw(rarely):
            setattr(request, f"{name}_revision", draw(revisions))
    if draw(seldom):
        request.key = b""
    return request


@st.composite
def compares(draw: st.DrawFn) -> rpc_pb2.Compare:
    target = draw(st.integers(0, 4))
    compare = rpc_pb2.Compare(key=draw(keys), result=draw(st.integers(0, 3)), target=target)
    if draw(rarely):
        compare.range_end = draw(ends)
    if draw(rarely):
        compare.target = draw(st.integers(0, 5))  # not that of the union's member, or none at all
    if target == rpc_pb2.Compare.VERSION:
        compare.version = draw(numbers)
    elif target == rpc_pb2.Compare.CREATE:
        compare.create_revision = draw(revisions)
    elif target == rpc_pb2.Compare.MOD:
        compare.mod_revision = draw(revisions)
    elif target == rpc_pb2.Compare.VALUE:
        compare.value = draw(values)
    else:
        compare.lease = draw(leases)
    if draw(seldom):
        compare.key = b""
    return compare


@st.composite
def txns(draw: st.DrawFn, depth: int = 0, *, ignores: bool | None = None) -> rpc_pb2.TxnRequest:
    if ignores is None:
        # One or the other in a transaction: see `differences.NOT_DRAWN`.
        ignores = draw(flags)
    request = rpc_pb2.TxnRequest(compare=draw(st.lists(compares(), max_size=2)))
    for branch in (request.success, request.failure):
        kinds = draw(st.lists(st.integers(0, 49), max_size=3))
        if draw(seldom):
            kinds = [20] * (TXN_OPS_MAX + draw(st.integers(-2, 1)))
        for kind in kinds:
            if kind == 49:
                branch.append(rpc_pb2.RequestOp())
            elif kind < 20:
                branch.append(rpc_pb2.RequestOp(request_put=draw(puts(ignores=ignores))))
            elif kind < 31 or depth == 3:
                branch.append(rpc_pb2.RequestOp(request_range=draw(ranges())))
            elif kind < 39:
                deletion = draw(deletes(from_key=not ignores))
                branch.append(rpc_pb2.RequestOp(request_delete_range=deletion))
            else:
                nested = draw(txns(depth + 1, ignores=ignores))
                branch.append(rpc_pb2.RequestOp(request_txn=nested))
    return request


@st.composite
def compactions(draw: st.DrawFn) -> rpc_pb2.CompactionRequest:
    revision = draw(
        st.one_of(
            st.integers(-8, 1).map(lambda back: CURRENT + back),
            st.integers(-1, 2).map(lambda more: COMPACTED + more),
            st.sampled_from((0, -1, FUTURE)),
        )
    )
    return rpc_pb2.CompactionRequest(revision=revision, physical=draw(flags))


@st.composite
def watch_creations(draw: st.DrawFn) -> rpc_pb2.WatchRequest:
    create = rpc_pb2.WatchCreateRequest(
        key=draw(keys),
        range_end=draw(ends),
        prev_kv=draw(flags),
        fragment=draw(flags),
        progress_notify=draw(flags),
    )
    if draw(flags):
        create.start_revision = draw(revisions)
    if draw(rarely):
        create.filters.extend(draw(st.lists(st.integers(0, 2), max_size=2)))
    if draw(rarely):
        create.watch_id = draw(st.sampled_from((1, 2, 3, 1000, -5)))
    if draw(rarely):
        create.key = b""
    return rpc_pb2.WatchRequest(create_request=create)


@st.composite
def watches(draw: st.DrawFn) -> Watch:
    kind = draw(st.integers(0, 20))
    if kind < 14:
        request = draw(watch_creations())
    elif kind < 18:
        watch_id = draw(st.sampled_from((0, 1, 2, 3, 1000, -5, -1)))
        request = rpc_pb2.WatchRequest(cancel_request={"watch_id": watch_id})
    elif kind < 20:
        request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
    else:
        request = rpc_pb2.WatchRequest()
    return Watch(draw(st.integers(0, 1)), request)


grants = st.builds(
    lambda lease_id, ttl_s: Call(rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s)),
    st.sampled_from(LEASES),
    st.sampled_from((100, 1000, 500, 9_000_000_000, 9_000_000_001)),
)
lease_ids = st.sampled_from((*LEASES, 99, 0))
lease_steps = st.one_of(
    grants,
    grants,
    lease_ids.map(lambda lease_id: Call(rpc_pb2.LeaseRevokeRequest(ID=lease_id))),
    st.builds(
        lambda lease_id, with_keys: Call(
            rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=with_keys)
        ),
        lease_ids,
        flags,
    ),
    st.just(Call(rpc_pb2.LeaseLeasesRequest())),
    lease_ids.map(KeepAlive),
    st.sampled_from((-5, 0, 1, 2, 100, 9_000_000_001)).map(ChosenLease),
)

raws = st.builds(
    Raw,
    st.sampled_from(
        (
            "/etcdserverpb.KV/Put",
            "/etcdserverpb.KV/Range",
            "/etcdserverpb.KV/Txn",
            "/etcdserverpb.Lease/LeaseGrant",
            "/etcdserverpb.Maintenance/HashKV",
            "/etcdserverpb.KV/Absent",
            "/etcdserverpb.Absent/Put",
            "/absent",
        )
    ),
    # A field cut off in its tag, its length, its bytes.
    st.sampled_from((b"\xff", b"\x0a", b"\x0a\x05a")),
)

STEPS_MEAN = 50
STEPS_MAX = 100
HUGE = REQUEST_SIZE_MAX + (512 << 10)
huge_puts = st.builds(
    lambda key, pad: Call(rpc_pb2.PutRequest(key=key), pad),
    keys,
    st.sampled_from(
        (REQUEST_SIZE_MAX - 100, REQUEST_SIZE_MAX - 100, REQUEST_SIZE_MAX + 1, HUGE - 100, HUGE + 1)
    ),
)
hashes = revisions.map(lambda revision: Call(rpc_pb2.HashKVRequest(revision=revision)))
others = st.sampled_from((Call(rpc_pb2.MemberListRequest()), Call(rpc_pb2.AlarmRequest())))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    kind = draw(st.integers(0, 199))
    if kind == 37 and draw(seldom):  # it takes seconds
        return Expiry(tuple(draw(st.lists(keys, max_size=2))))
    if kind < 60:
        return Call(draw(puts()))
    if kind < 75:
        return Call(draw(deletes()))
    if kind < 105:
        return Call(draw(ranges()))
    if kind < 145:
        return Call(draw(txns()))
    if kind < 163:
        return draw(watches())
    if kind < 181:
        return draw(lease_steps)
    if kind < 187:
        return Call(draw(compactions()))
    if kind < 192:
        return draw(hashes)
    if kind < 194:
        return draw(raws)
    if kind < 196:
        return draw(others)
    return draw(huge_puts)


@st.composite
def perhaps_a_step(draw: st.DrawFn) -> Step | None:
    return draw(steps()) if draw(st.integers(0, STEPS_MEAN)) else None


class Program(list[Step]):
    """Steps; hypothesis shows it, and refuses to show much."""

    def __repr__(self) -> str:
        return f"{len(self)} steps"


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Some 50 steps on average: of `st.lists` it would be six, and every program has a start."""
    program = Program()
    while len(program) < STEPS_MAX and (step := draw(perhaps_a_step())) is not None:
        program.append(step)
    return program
