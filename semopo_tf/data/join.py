"""`data join SRC SRC ... DST`: one dataset of the episodes of several, in the order in which they are named.

A model that has seen a single kind of behaviour knows little of what other actions do; random networks beside a replay
show it. All datasets must be of one task before one kind of background. The episodes stay as they are, byte for byte,
under new numbers. After an interruption the same command continues.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf.data.cards import read_card, return_statistics
from semopo_tf.data.changes import Changes
from semopo_tf.data.convert import Source, made_from, require_unchanged, sources
from semopo_tf.data.episodes import episode_files, read_episode
from semopo_tf.data.writing import continued, finish, require_shapes
from semopo_tf.errors import ConfigError
from semopo_tf.storage.files import sha256, write_whole

SAME = ("task", "environment", "background")  # entries of the cards; of the background all but its clips
OF_EACH = ("policy", "level", "behaviour", "kept_returns", "seed", "episodes")  # what the joined card says of each


def join(folders: Sequence[Path], target: Path) -> None:
    """Write the episodes of `folders` and a card into `target`.

    Raises:
      ConfigError: as `joined_card`, or for a target that holds something else.
      DataError: for a bad source.
    """
    cards = [read_card(folder) for folder in folders]
    together = joined_card(folders, cards)
    files = [source for folder in folders for source in sources(episode_files(folder))]
    with continued(target, made_from(files, Changes())) as card:
        copied = copies(files, target)
        require_unchanged(files)
        if together:
            together["returns"] = return_statistics(list(copied.values()))
        written = finish(target, together | card, list(copied))
    print(f"{target}: {written['episodes']} episodes of {len(folders)} datasets, {written['records']} records")


def copies(files: Sequence[Source], target: Path) -> dict[Path, float]:
    """The copy of every episode under its number -> its return; those that are not there are written.

    Raises:
      DataError: for an episode with images or actions of another shape than the first.
    """
    returns: dict[Path, float] = {}
    first = read_episode(files[0].path)
    for number, source in enumerate(files):
        episode = read_episode(source.path)
        require_shapes(episode, first, str(source.path))
        path = target / f"{number:06d}-{source.sha256[:8]}-{len(episode.reward) - 1}.npz"
        if not path.exists() or sha256(path) != source.sha256:
            write_whole(path, source.path.read_bytes())
        returns[path] = float(episode.reward.sum(dtype=np.float64))
    return returns


def joined_card(folders: Sequence[Path], cards: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """What the cards say together, without what `writing.finish` adds; nothing where no dataset has a card.

    Raises:
      ConfigError: for datasets of different environments, some without a card, or one whose collection has not ended.
    """
    first = cards[0]
    for folder, card in zip(folders, cards, strict=True):
        if (card is None) != (first is None):
            with_card, without = (folder, folders[0]) if card else (folders[0], folder)
            raise ConfigError(
                f"{without}: expected a card dataset.json as in {with_card}, received none; collect it again, or "
                "remove the card there"
            )
        if card and card.get("status", "complete") != "complete":
            raise ConfigError(
                f"{folder}: expected a complete dataset, received one that is {card['status']}; finish it"
            )
        for key in SAME:
            one, other = (_without_clips((each or {}).get(key)) for each in (first, card))
            if one != other:
                raise ConfigError(
                    f"{folder}: expected {key} {one} as in {folders[0]}, received {other}; only datasets of one "
                    "environment can be joined"
                )
    known = [card for card in cards if card]
    if not known:
        return {}
    merged = {key: known[0][key] for key in (*SAME, "versions") if key in known[0]}
    if "background" in merged:
        clips = dict.fromkeys(clip for card in known for clip in card["background"].get("clips", []))
        merged["background"] = {**merged["background"], "clips": list(clips)}
    parts = [{key: card[key] for key in OF_EACH if key in card} for card in known]
    return {**merged, "policy": " + ".join(str(part.get("policy", "unknown")) for part in parts), "joined": parts}


def _without_clips(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key != "clips"} if isinstance(entry, dict) else entry
