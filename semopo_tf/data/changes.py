"""What may be changed of episodes on the way to another dataset."""

from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.data.validation import repair_flags
from semopo_tf.errors import DataError
from semopo_tf.storage.resize import resize
from semopo_tf.types import Episode


class Changes:
    """Repairs flags, resizes images and leaves out short episodes where that is wanted, and counts."""

    def __init__(self, repair: bool = False, min_length: int = 0, size: int = 0):
        self.repair, self.min_length, self.size = repair, min_length, size
        self._sizes: set[tuple[int, ...]] = set()  # [H, W] of the images that were resized
        self._files = self._values = self._kept = self._short = 0

    @property
    def wanted(self) -> bool:
        """Whether any change is."""
        return bool(self.repair or self.min_length or self.size)

    def amend(self, arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """The arrays with repaired flags; for `read_episode`."""
        if not self.repair:
            return arrays
        repaired = repair_flags(arrays, where)
        changed = sum(int((repaired[key] != arrays[key]).sum()) for key in arrays if repaired[key] is not arrays[key])
        self._files, self._values = self._files + bool(changed), self._values + changed
        return repaired

    def identity(self) -> dict[str, Any]:
        """What a card says of the changes."""
        wanted = {"min_length": self.min_length, "size": self.size}
        return {"repair_flags": self.repair, **{key: value for key, value in wanted.items() if value}}

    def applied(self, episode: Episode) -> Episode | None:
        """The episode with images of the wanted size; None for one that is too short."""
        long = len(episode.reward) >= self.min_length
        self._kept, self._short = self._kept + long, self._short + (not long)
        if not long or not self.size:
            return episode if long else None
        self.note_size(episode.image.shape[1:3])
        return episode._replace(image=resize(episode.image, self.size))

    def note_size(self, size: tuple[int, ...]) -> None:
        """Count images of [H, W] pixels for the report, if they do not stay as they are."""
        if size != (self.size, self.size):
            self._sizes.add(size)

    def report(self, folder: Path) -> None:
        """Print the counts.

        Raises:
          DataError: when no episode is kept.
        """
        if self.repair:
            print(f"repaired {self._values} flags in {self._files} episodes")
        if self._sizes:
            received = ", ".join(f"{height} x {width}" for height, width in sorted(self._sizes))
            print(f"{folder}: images of {received} pixels are now {self.size} x {self.size}")
        if self.min_length:
            episodes = f"{self._short} of {self._short + self._kept} episodes"
            print(f"{folder}: {episodes} have fewer than {self.min_length} records and are left out")
            if not self._kept:
                raise DataError(
                    f"{folder}: expected episodes of at least {self.min_length} records, received none; lower "
                    "--min_length"
                )
