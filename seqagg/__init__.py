"""Frame scores of a frozen classifier in, one label per song out."""

from seqagg.cache import read_cache, write_cache
from seqagg.songs import Songs

__all__ = ["Songs", "read_cache", "write_cache"]
