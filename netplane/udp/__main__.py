"""`python -m netplane.udp` is `netplane-udp`."""

from netplane.udp.process import main

main()
