"""A member inside this process, `kvstore.embed()`: the names users import, and nothing else."""

from kvstore.embedded.api import AsyncEmbeddedMember, EmbeddedMember, Embedding, embed
from kvstore.embedded.member import MemberFailedError
from kvstore.server.config import ConfigError
from kvstore.server.startup import StartError

__all__ = [
    "AsyncEmbeddedMember",
    "ConfigError",
    "EmbeddedMember",
    "Embedding",
    "MemberFailedError",
    "StartError",
    "embed",
]
