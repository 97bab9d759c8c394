"""Episodes on disk, the dataset made of them, and the batches drawn from it. Imports the vocabulary and `storage`.

data.write(episodes, "data/mine")   # an iterable of `data.Recording` as a dataset
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semopo_tf.data.recording import Recording
    from semopo_tf.data.writing import write

__all__ = ["Recording", "write"]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that a module of this folder is imported alone."""
    if name in __all__:
        from semopo_tf.data import recording, writing

        return {"Recording": recording.Recording, "write": writing.write}[name]
    raise AttributeError(f"module 'semopo_tf.data' has no attribute {name!r}")
