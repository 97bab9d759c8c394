"""Which episodes and records entered an update of a run: python tools/which_frames.py RUN model|policy STEP

STEP counts from 0. Recomputed from the run's config.yaml and dataset_manifest.json alone, with NumPy and no import of
semopo_tf: an independent check of the sampler, and the way to look at what a run was trained on. Prints: episode file,
first record, last record.
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np

MULTIPLIERS, WEYL, LOW = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 0xFFFFFFFF


def read_settings(path: Path) -> dict[str, str]:
    """The run's settings by dotted name, as text."""
    found, sections = {}, []
    for line in path.read_text().splitlines():
        key, colon, value = line.strip().partition(":")
        if colon and not key.startswith("-"):
            sections = [*sections[: (len(line) - len(line.lstrip())) // 2], key]
            found[".".join(sections)] = value.strip().strip("'\"")
    return found


def integers(seed: int, phase: str, stream: str, step: int, count: int, limit) -> np.ndarray:
    """Philox 4x32-10 words of (seed, stream, step), mapped to 0..limit-1 by their product's upper half."""
    block, zero = np.arange(-(-count // 4), dtype=np.uint64), np.zeros(-(-count // 4), np.uint64)
    a, b, c, d = block, zero, zero + np.uint64(step & LOW), zero + np.uint64(step >> 32)
    key = [zlib.crc32(f"{phase}/{stream}".encode()), seed]
    for _ in range(10):
        first, second = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])
        a, c = (second >> np.uint64(32)) ^ b ^ np.uint64(key[0]), (first >> np.uint64(32)) ^ d ^ np.uint64(key[1])
        b, d = second & np.uint64(LOW), first & np.uint64(LOW)
        key = [(word + add) & LOW for word, add in zip(key, WEYL, strict=True)]
    words = np.stack([a, b, c, d], 1).reshape(-1)[:count]
    return (words * np.asarray(limit, np.uint64) >> np.uint64(32)).astype(np.int64)


def reachable(get: dict[str, str], files: list[dict], phase: str, step: int) -> list[int]:
    """The episodes that an update may draw from, in the order in which it counts them."""
    kept = [i for i, file in enumerate(files) if file["length"] >= int(get.get("min_length", 0))]
    ranks = sorted(kept, key=lambda i: hashlib.sha256(f"{get['seed']}/{files[i]['name']}".encode()).digest())
    members = sorted(ranks[round(float(get["valid_fraction"]) * len(kept)) :])
    if get["sampling"] == "uniform" or (phase == "policy" and get["policy_starts"] == "dataset"):
        return members
    ties, total, every = get["pool.drop_ties"] == "true", int(get["steps.model"]), int(get["pool.grow_every"])
    value = "native_return" if ties else "return"
    if ties:
        members = sorted({files[i][value]: i for i in members}.values())
    if get["pool.order"] == "return":
        members = sorted(members, key=lambda i: files[i][value])
    cap = len(members) if get["pool.include_last"] == "true" else max(1, len(members) - 1)
    growth = int(get["pool.grow_by"]) or max(1, len(members) * every // max(1, total - every + 1))
    return members[: min(int(get["pool.start"]) + (step if phase == "model" else total) // every * growth, cap)]


def windows(run: Path, phase: str, step: int) -> list[tuple[str, int, int]]:
    """(episode file, first record, last record) of each window of the batch."""
    get, files = read_settings(run / "config.yaml"), json.loads((run / "dataset_manifest.json").read_text())["files"]
    seed, batch, length, episodes = (
        int(get["seed"]),
        int(get["batch.size"]),
        int(get["batch.length"]),
        reachable(get, files, phase, step),
    )
    chosen = [episodes[i] for i in integers(seed, phase, f"{phase}_episode", step, batch, len(episodes))]
    starts = integers(seed, phase, f"{phase}_start", step, batch, [files[i]["length"] - length + 1 for i in chosen])
    return [(files[i]["name"], int(start), int(start) + length - 1) for i, start in zip(chosen, starts, strict=True)]


if __name__ == "__main__":
    for row in windows(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])):
        print(*row)
