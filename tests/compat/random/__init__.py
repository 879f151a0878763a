"""A random stream of requests, to a real etcd and to a member of ours: everything must agree.

    python -m tests.compat.random --operations 5000 --seed 1

hypothesis draws programs (`strategies`) of steps (`steps`), `run` carries each out on both members
and compares what comes back (`answers`) and what arrives on watch streams (`watching`).
`differences` is the one table of what may differ, and why. `minimise` makes a program that differs
small, and what was found so stays as a plain test in `corpus`.
"""
