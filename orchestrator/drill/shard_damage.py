"""Damage to a checkpoint, wherever it is kept."""

from orchestrator.checkpoint.storage.checkpoint_catalog import list_checkpoints
from orchestrator.checkpoint.storage.storage import open_storage

BIT = 0x10


def corrupt_newest(place: str) -> bool:
    """Flip one bit in the middle of a shard of the newest checkpoint at a directory or URL; False if there is none.

    Raises StorageError.
    """
    storage = open_storage(place)
    newest = next((found for found in list_checkpoints(storage) if found.problem is None), None)
    if newest is None or newest.manifest is None:
        return False
    shard = newest.manifest.shards[0]
    content = bytearray(shard.size_bytes)
    storage.read_into(newest.name, shard.file, 0, memoryview(content))
    content[len(content) // 2] ^= BIT
    storage.put(newest.name, shard.file, [memoryview(content)], len(content))
    return True
