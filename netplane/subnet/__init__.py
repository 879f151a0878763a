"""Who has which subnet: the registry's keys and values, and how a subnet is had."""
