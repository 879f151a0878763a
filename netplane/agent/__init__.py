"""The agent of a host: from the registry's view to the kernel, again and again."""
