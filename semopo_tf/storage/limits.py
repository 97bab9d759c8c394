"""What this process may use: the limits of its shell (`ulimit`), of its job (cgroups) and of the machine, the smallest
of which counts.
"""

import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

ULIMITS = {resource.RLIMIT_AS: "ulimit -v", resource.RLIMIT_CPU: "ulimit -t", resource.RLIMIT_FSIZE: "ulimit -f"}
# kB. The smallest run takes 2.5 million; where a little is missing TensorFlow ends without a word, or turns for ever.
LEAST_ADDRESS_SPACE = 2_500_000
NO_LIMIT = 1 << 60  # from here on a cgroup's number means that there is none
# Of a cgroup's memory controller, by version: limit, use, and which part of the use the kernel gives back at need.
CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def at_most(kind: int, most: int) -> tuple[int, int]:
    """The soft and hard limit for a child that should have `most`: nobody may raise a limit of the shell."""
    soft, hard = (most if limit == resource.RLIM_INFINITY else min(most, limit) for limit in resource.getrlimit(kind))
    return soft, hard


def tighter(limits: Mapping[int, int]) -> str:
    """The limits of the shell that give a child less than it should have, in words; empty where there are none.

    A child that fails under them says nothing about the file that it reads.
    """
    lower = [
        f"{ULIMITS[kind]} ({at_most(kind, most)[0]} of {most})"
        for kind, most in limits.items()
        if at_most(kind, most)[0] < most
    ]
    return " and ".join(lower)


def lacking_address_space() -> int:
    """The limit of `ulimit -v` in kB where it is too low for TensorFlow; 0 where it is enough, or there is none."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit >> 10 if limit != resource.RLIM_INFINITY and limit >> 10 < LEAST_ADDRESS_SPACE else 0


def usable_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory available to new work, including reclaimable caches; 0 where the system does not say.

    Args:
      root: of the file systems `proc` and `sys`.
    """
    free = [*_of_machine(root), *_of_job(root), *_of_shell()]
    return max(1, min(free)) if free else 0


def _of_machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable"):
            yield int(line.split()[1]) * 1024


def _of_shell() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave; the kernel counts address space and data."""
    used = dict(line.split(":", 1) for line in _lines(Path("/proc/self/status")) if ":" in line)
    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and name in used:
            yield limit - int(used[name].split()[0]) * 1024


def _of_job(root: Path) -> Iterator[int]:
    """What the memory limits of this process's cgroup and of those around it leave."""
    mounts = dict(_cgroup_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "none", ""][:3]
        version = 2 if not controllers else 1 if "memory" in controllers.split(",") else 0
        if version not in mounts:
            continue
        top, mounted = mounts[version]
        # In a container the mount shows a part of the tree only, and the path may be written from outside of it.
        inside = os.path.relpath(path, mounted) if path.startswith(mounted) else ""
        folder = top / inside
        while folder == top or top in folder.parents:
            yield from _of_cgroup(folder, version)
            folder = folder.parent


def _cgroup_mounts(root: Path) -> Iterator[tuple[int, tuple[Path, str]]]:
    """Version of a cgroup file system that can limit memory -> where it is mounted, and which folder of it."""
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, kind = line.partition(" - ")
        words, kinds = fields.split(), kind.split(" ", 2)
        if len(words) < 5 or len(kinds) < 3:
            continue
        mounted, place, name, options = *words[3:5], kinds[0], kinds[2]
        if name == "cgroup2" or (name == "cgroup" and "memory" in options.replace(" ", ",").split(",")):
            yield 2 if name == "cgroup2" else 1, (root / place.lstrip("/"), mounted)


def _of_cgroup(folder: Path, version: int) -> Iterator[int]:
    limit, current, reclaimable = CGROUP_FILES[version]
    words = ["".join(_lines(folder / name)) for name in (limit, current)]
    if all(word.isdigit() for word in words) and int(words[0]) < NO_LIMIT:
        kept = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == reclaimable]
        yield int(words[0]) - max(0, int(words[1]) - sum(kept))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
