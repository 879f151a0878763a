"""What container runtimes start: the CNI plugin, which leaves the work to the agent."""
