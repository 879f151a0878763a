"""A random stream of requests, to a real etcd and to a member of ours: everything must agree.

    python -m tests.compat.random --operations 5000 --seed 1

hypothesis draws programs (`strategies`) of steps (`steps`), `runner` carries each out on both
members and compares what comes back, `watching` what arrives on watch streams. `differences` is
the one table of what may differ, and why. What a search has found stays as a plain test in
`corpus`.
"""
