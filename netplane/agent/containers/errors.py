"""Errors of a CNI call."""

from __future__ import annotations


class CniError(Exception):
    """A call that fails; `code` is the specification's or one of ours (`netplane.cni.plugin`)."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code = code
        self.message = message
        self.details = details
