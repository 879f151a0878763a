"""Errors that end the agent or a command of it.

AgentError
├── SettingsError    a flag or variable cannot be honoured
├── InterfaceError   no interface, or more than one, to reach the other hosts by
├── LockedError      another agent runs this instance
└── NotRunningError  a command needs an agent that is not there
"""

from __future__ import annotations


class AgentError(Exception):
    """Something that the operator must change; the text says what was wrong and what helps."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


class SettingsError(AgentError):
    """A flag or variable cannot be honoured."""


class InterfaceError(AgentError):
    """No interface, or more than one, to reach the other hosts by."""


class LockedError(AgentError):
    """Another agent runs this instance."""


class NotRunningError(AgentError):
    """A command needs an agent that is not there."""
