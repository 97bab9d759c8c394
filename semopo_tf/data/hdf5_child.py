"""The child process that reads HDF5, see `hdf5_process.py` for the other end of its pipe."""

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from semopo_tf.data import minari_hdf5, vd4rl
from semopo_tf.errors import DataError
from semopo_tf.storage.child import send
from semopo_tf.storage.limits import at_most

LAYOUTS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {"vd4rl": vd4rl.answers, "minari": minari_hdf5.answers}


def serve(descriptor: int) -> None:
    """The child's whole life: take a request, set the limits, send the episodes.

    A request has `layout`, `files` (paths in order), `memory` (bytes), `seconds` (of processor time), `skip` (episodes
    not to send) and `options` of the layout. The answers are `{"contents": ...}`, then `{"arrays": {name: array}}` for
    each episode, then `{"end": true}`, or at any point `{"error": line}`.
    """
    pipe = Connection(descriptor)
    request = json.loads(pipe.recv_bytes())
    limit(request["memory"], request["seconds"])
    files = [Path(name) for name in request["files"]]
    with contextlib.suppress(ConnectionError):
        try:
            for answer in LAYOUTS[request["layout"]](files, request["skip"], **request["options"]):
                send(pipe, answer)
            send(pipe, {"end": True})
        except DataError as error:
            send(pipe, {"error": str(error)})
        except MemoryError:
            megabytes = request["memory"] >> 20
            line = f"reading it takes more than {megabytes} MB of memory; do not trust this file"
            send(pipe, {"error": f"{files[0]}: {line}", "memory": True})


def limit(memory: int, seconds: int) -> None:
    """Limit this process: bytes of address space, seconds of processor time, no core dump, no file above 1 MB."""
    soft, hard = at_most(resource.RLIMIT_CPU, seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (min(soft, seconds), hard))  # the first ends with a signal of its own
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 1 << 20)):
        resource.setrlimit(kind, at_most(kind, most))
