"""The agent's half of CNI: addresses, devices and ports of containers on this host."""
