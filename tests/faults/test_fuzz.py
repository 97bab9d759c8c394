"""Broken and hostile files by the thousand: each is refused in one line or read as it was written.

Two kinds. Classed inputs come from families that break one thing at a time; mutated ones from seeded damage of a good
file: flipped bits, cuts, copied, inserted and deleted pieces. `make test` runs a tenth of both. What no check covers: a
change of a card or a configuration into another valid one (people edit them), and changed pictures in a video, which
carries no checksum.
"""

import codecs
import contextlib
import io
import itertools
import json
import pickle
import re
import resource
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np
import pytest

from semopo_tf import config
from semopo_tf.data.cards import read_card
from semopo_tf.data.episodes import read_episode
from semopo_tf.data.validation import EPISODE_KEYS
from semopo_tf.envs import tasks
from semopo_tf.envs.videos import decode
from semopo_tf.errors import SemopoError, one_line
from semopo_tf.run import checkpoints

MUTATED = {"npz episode": 10_000, "dataset card": 5000, "checkpoint manifest": 3000, "YAML page": 2000}
VIDEOS = 200
LEAST_CLASSED = 500
SECONDS = 2.0  # of processor time for one input: a busy machine is no hang
VIDEO_SECONDS = 20.0  # of the clock, for a decoder process
MEMORY = 256 << 20  # bytes that the whole of it may add to the process
LONGEST = 300
FORBIDDEN = ("Traceback", "allow_pickle", "KeyError", "\n", "\x1b")
DEFAULTS = config.defaults()._tree


class Subject(NamedTuple):
    """A kind of file: where it lies, how it is read, a good example, and whether every change of its content must be
    found.
    """

    place: Callable[[Path], Path]
    read: Callable[[Path], object]
    good: bytes
    strict: bool


def image_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (9, 8, 8, 3)).astype(np.uint8)


def episode_arrays() -> dict[str, np.ndarray]:
    """An episode that ends in a termination, so that every flag says something."""
    record = np.arange(9)
    action, reward = np.linspace(-1, 1, 18, dtype=np.float32).reshape(9, 2), (record / 8).astype(np.float32)
    action[0] = 0
    ended = record == 8
    flags = {"is_first": record == 0, "is_last": ended, "is_terminal": ended}
    return {
        "image": image_of(0),
        "action": action,
        "reward": reward,
        "discount": 1 - ended.astype(np.float32),
        **flags,
        "log_state": record,
    }


def npz(arrays: dict, **settings) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **settings)
    return buffer.getvalue()


def npy(array, **settings) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **settings)
    return buffer.getvalue()


def archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as target:
        for name, content in members:
            target.writestr(name, content)
    return buffer.getvalue()


def episode_content(path: Path) -> object:
    episode = read_episode(path)
    return [
        (array.dtype.str, array.shape, array.tobytes()) for array in (getattr(episode, key) for key in EPISODE_KEYS)
    ]


CARD = {
    **{"status": "complete", "task": "dmcdrv_walker_walk", "policy": "random", "seed": 1, "episodes": 1, "records": 9},
    "environment": {"size": 64, "action_repeat": 2, "camera": -1},
    "background": {
        "source": "builtin:driving",
        "color": "grey",
        "split": "train",
        "seed": 0,
        "mask_rule": "sky",
        "clips": ["a.mp4", "b.mp4"],
        "distractor": "agent",
    },
    "versions": {"dm_control": "1.0.50", "backend": "egl"},
    "returns": {"mean": 4.5, "std": 0.5, "min": 4.0, "p25": 4.0, "median": 4.5, "p75": 5.0, "max": 5.0},
    "files": [{"file": "000000-00000001-8.npz", "seed": 1, "return": 4.5, "sha256": "0" * 64}],
}


def card_content(path: Path) -> object:
    card = read_card(path.parent)
    return tasks.settings_of(card) if card else None


PAGE = b"""# one overlay
seed: 3
task: 'dmcdrv_walker_walk'
kl: {balance: 0.8, free: 1.0, strict_elbo: False}
encoder: {depth: 32, kernels: [4, 4, 4, 4], act: elu}
model_opt: &opt {lr: 6.0e-5, eps: 1.0e-5}
actor_opt: *opt
critic_opt: {<<: *opt, lr: 1e-4}
"""


def page_content(path: Path) -> object:
    return config._checked(config._merge(DEFAULTS, config.read_yaml(path), path.name)).flat()


TENSORS = {"model/kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "policy/step": np.int64(7)}


STATE = {"metrics_size": 0, "timing_size": 0, "sums": [1.5], "count": 1}


def checkpoint_content(path: Path) -> object:
    found = checkpoints.load(path.parent)
    return found.phase, found.step, {name: (tensor.shape, tensor.tobytes()) for name, tensor in found.tensors.items()}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory) -> dict[str, Subject]:
    checkpoint = checkpoints.save(tmp_path_factory.mktemp("run"), "model", 5, TENSORS, STATE)
    manifest = checkpoint / "MANIFEST.json"
    return {
        "npz episode": Subject(lambda folder: folder / "e.npz", episode_content, npz(episode_arrays()), True),
        "dataset card": Subject(
            lambda folder: folder / "dataset.json", card_content, json.dumps(CARD, indent=1).encode(), False
        ),
        "checkpoint manifest": Subject(lambda folder: manifest, checkpoint_content, manifest.read_bytes(), True),
        "YAML page": Subject(lambda folder: folder / "page.yaml", page_content, PAGE, False),
    }


# --- damage -----------------------------------------------------------------------------------------------------------

TELLING = (
    b"\x00",
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\x00" * 8,
    b"PK\x05\x06",
    b"PK\x01\x02",
    b"'O'",
    b"{",
    b"[" * 50,
    b'"',
    b"1e999",
    b"&a *a ",
    b"!!",
)
WORD = re.compile(rb"[\w.+-]+")
WORDS = (
    b"-1",
    b"0",
    b"1e999",
    b"1e-400",
    b"null",
    b"true",
    b"no",
    b"[]",
    b"{}",
    b'""',
    b"~",
    b"0x7f",
    b"9" * 30,
    b"nan",
    b"'1'",
    b"<<",
    b"*opt",
    b"seed",
)
DAMAGES = ("flip", "flips", "cut", "copy", "insert", "delete", "overwrite", "word", "word", "word")


def mutate(good: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy of `good`, sometimes damaged twice."""
    data = bytearray(good)
    for _ in range(int(rng.integers(1, 3))):
        kind = DAMAGES[int(rng.integers(len(DAMAGES)))]
        place, other = (int(value) for value in rng.integers(0, max(len(data), 1), 2))
        size = int(rng.integers(1, 65))
        if kind in ("flip", "flips") and data:
            for bit in rng.integers(0, 8 * len(data), 1 if kind == "flip" else 8):
                data[bit // 8] ^= 1 << (bit % 8)
        elif kind == "cut":
            del data[place:]
        elif kind == "copy":
            data[place : place + size] = data[other : other + size]
        elif kind == "insert":
            data[place:place] = TELLING[int(rng.integers(len(TELLING)))] if rng.random() < 0.5 else rng.bytes(size)
        elif kind == "delete":
            del data[place : place + size]
        elif kind == "word":  # another where a word or number stands: gets past the grammar
            found = list(WORD.finditer(data))
            span = found[int(rng.integers(len(found)))].span() if found else (0, 0)
            data[slice(*span)] = WORDS[int(rng.integers(len(WORDS)))]
        else:
            piece = TELLING[int(rng.integers(len(TELLING)))]
            data[place : place + len(piece)] = piece
    return bytes(data)


# --- families of one broken thing -------------------------------------------------------------------------------------


def npz_families() -> Iterator[tuple[str, bytes]]:
    good, arrays = npz(episode_arrays()), episode_arrays()
    members = [(f"{key}.npy", npy(array)) for key, array in arrays.items()]
    yield from (("cut", good[: len(good) * part // 40]) for part in range(40))
    yield from (("something behind", good + bytes(size)) for size in (1, 2, 3, 21, 22, 100, 65536))
    yield from (("something before", bytes(size) + good) for size in (1, 2, 3, 22, 100))
    pages = (
        b"<!DOCTYPE html>",
        b"<html>",
        b"\xef\xbb\xbf<!doctype html>",
        b"\n\n<HTML lang=en>",
        b"<?xml version='1.0'?>",
        b"<head>",
    )
    yield from (("web page", page + b"<body>Google Drive - Quota exceeded</body></html>") for page in pages)
    yield from (("pickle", pickle.dumps({"image": [1, 2]}, protocol)) for protocol in range(6))
    others = (
        b"\x89PNG\r\n",
        b"\x1f\x8b\x08",
        b"BZh9",
        b"7z\xbc\xaf",
        b"\x89HDF\r\n\x1a\n",
        b"ustar",
        b"%PDF",
        b"{}",
        b"GIF89a",
        b"MZ",
        b"\x7fELF",
        b"",
    )
    yield from (("another format", head + bytes(200) if head else b"") for head in others)
    yield from (("a single array", npy(array)) for array in arrays.values())
    yield from (
        ("key missing", npz({name: array for name, array in arrays.items() if name != key}))
        for key in ("image", "action", "reward")
    )
    kinds = ("i1", "u2", "i8", "f2", "f8", "c8", "U3", "S1", "M8[s]", "O", "?")
    wrong = {"image": set(kinds), "action": {"i1", "u2", "i8", "c8", "U3", "S1", "M8[s]", "O", "?"}}
    wrong["reward"] = wrong["action"]
    flags = {"c8", "U3", "S1", "M8[s]", "O"}
    for key, kind in itertools.product(EPISODE_KEYS, kinds):
        if kind in wrong.get(key, flags):
            changed = arrays[key].astype("i8").astype(kind) if kind == "M8[s]" else arrays[key].astype(kind)
            yield "type", npz(arrays | {key: changed}, allow_pickle=True)
    for key in EPISODE_KEYS:
        array = arrays[key]
        lengths = (array[:-1], array[:0], array[:1], np.concatenate([array, array]), np.concatenate([array, array[:1]]))
        yield from (("length", npz(arrays | {key: changed})) for changed in lengths)
        yield from (
            ("rank", npz(arrays | {key: changed})) for changed in (array[None], array[..., None], array.ravel()[0])
        )
    for key, value, place in itertools.product(("action", "reward", "discount"), (np.nan, np.inf, -np.inf), (1, 4, 7)):
        changed = arrays[key].copy()
        changed[place] = value
        yield "not finite", npz(arrays | {key: changed})
    for key, value in (
        *(("action", value) for value in (1.01, -2, 1e30)),
        *(("reward", value) for value in (2e6, -1e30)),
        ("discount", 1.1),
    ):
        changed = arrays[key].copy()
        changed[3] = value
        yield "out of range", npz(arrays | {key: changed})
    for place, shape in itertools.product(
        range(7), ((1 << 20,), (1 << 30, 64), (1 << 40, 64, 64, 3), (1 << 62,), (1 << 62, 1 << 62), (10**18,) * 8)
    ):
        header = npy_header({"descr": "<f4", "fortran_order": False, "shape": shape})
        yield (
            "a header that promises more",
            archive([*members[:place], (members[place][0], header), *members[place + 1 :]]),
        )
    texts = [
        *(
            "__import__('os').abort()",
            "{}",
            "[]",
            "",
            "(" * 1000,
            "{'descr': '<f4'}",
            "{'descr': '|O', 'fortran_order': False, 'shape': (9,), }",
        ),
        *(
            f"{{'descr': {descr}, 'fortran_order': False, 'shape': (9,), }}"
            for descr in ("'<f3'", "'f'", "'<f99999'", "[('a', '|O')]", "'V8'", "None")
        ),
        *(
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
            for shape in ("(-9,)", "9", "(9L,)", "(9.0,)", "(9,,)", "((9,),)", "(' 9',)")
        ),
    ]
    yield from (
        ("header text", archive([*members[:2], ("reward.npy", npy_text(text) + bytes(36)), *members[3:]]))
        for text in texts
    )
    versions = ((0, 0), (1, 1), (2, 0), (3, 0), (9, 9))
    data = members[2][1]
    yield from (
        ("header version", archive([*members[:2], ("reward.npy", data[:6] + bytes(v) + data[8:]), *members[3:]]))
        for v in versions
    )
    names = (
        "../x.npy",
        "/x.npy",
        "a/../../x.npy",
        " ",
        ".npy",
        "image",
        "image.NPY",
        "a\\b.npy",
        "\x1b[2J.npy",
        "a//b.npy",
        "run.sh",
        "a" * 60_000 + ".txt",
    )
    yield from (("member name", archive([*members, (name, b"")])) for name in names)
    yield from (("compression", archive(members, kind)) for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    yield from (
        ("number of members", archive([*members, *((f"log_{n}.npy", b"") for n in range(count))]))
        for count in (57, 1000, 5000)
    )
    for offset, value in itertools.product(range(len(good) - 22, len(good)), (0x01, 0x80)):
        changed = bytearray(good)
        changed[offset] ^= value
        yield "last record", bytes(changed)
    deflated = zlib.compress(bytes(1 << 24), 9)
    yield (
        "a bomb inside",
        archive(
            [
                (
                    "image.npy",
                    npy_header({"descr": "|u1", "fortran_order": False, "shape": (9, 8, 8, 3)}) + bytes(1 << 24),
                ),
                *members[1:],
            ]
        ),
    )
    yield "a bomb inside", archive([("image.npy", deflated), *members[1:]], zipfile.ZIP_STORED)


def npy_header(header: dict) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def npy_text(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def card_families() -> Iterator[tuple[str, bytes]]:
    values = {str: "a", int: 3, float: 2.5, list: [1], dict: {"a": 1}, type(None): None, bool: True}
    for path, leaf in leaves(CARD):
        if path[0] == "versions":
            continue
        fits = {type(leaf), *([int] if type(leaf) is float else [])}
        yield from (("type", replaced(path, value)) for kind, value in values.items() if kind not in fits)
        if type(leaf) in (int, float):
            yield from (
                ("number", replaced(path, mark).replace(b'"mark"', text))
                for mark, text in (("mark", b"NaN"), ("mark", b"-Infinity"))
            )
    for part, name in (
        *(("environment", key) for key in ("size", "action_repeat", "camera")),
        *(("background", key) for key in ("source", "seed")),
    ):
        lacking = {**CARD, part: {key: value for key, value in CARD[part].items() if key != name}}
        yield "entry missing", json.dumps(lacking).encode()
    good = json.dumps(CARD).encode()
    yield from (("cut", good[: len(good) * part // 20]) for part in range(20))
    yield from (("encoding", json.dumps(CARD).encode(name)) for name in ("utf-16", "utf-32"))
    yield from (("nesting", text * 50_000) for text in (b"[", b'{"a":', b'[{"b":'))
    yield from (
        ("not an object", text)
        for text in (b"", b"null", b"3", b"[]", b'"a"', b"true", b"<html>", b"{} {}", b"{,}", b"\x00" * 100)
    )
    yield from (("twice", good.replace(f'"{key}":'.encode(), f'"{key}": 1, "{key}":'.encode(), 1)) for key in CARD)
    yield "digits", good.replace(b'"seed": 1', b'"seed": ' + b"9" * 100_000, 1)


def leaves(tree, path=()):
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


def replaced(path: tuple, value: object) -> bytes:
    """The card with another value in one place."""
    tree = json.loads(json.dumps(CARD))
    part = tree
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return json.dumps(tree).encode()


def manifest_families(good: bytes) -> Iterator[tuple[str, bytes]]:
    page = json.loads(good)
    yield from (("cut", good[: len(good) * part // 20]) for part in range(20))
    yield from (
        ("not a manifest", text)
        for text in (b"", b"null", b"3", b"[]", b"{}", b'"a"', b"[" * 50_000, b"<html>", b"\xff\xfe")
    )
    yield from (
        ("version", json.dumps(page | {"format": value}).encode()) for value in (0, 2, 99, "1", None, [1], 1.5, -1)
    )
    names = (
        "../../etc/passwd",
        "/etc/passwd",
        "tensors.npz/../x",
        "",
        ".",
        "..",
        "\x00",
        "MANIFEST.json",
        "a" * 5000,
        "state.json\x1b[2J",
    )
    entry = page["files"]["state.json"]
    yield from (
        ("a name outside", json.dumps(page | {"files": page["files"] | {name: entry}}).encode()) for name in names
    )
    for name, key, value in itertools.product(
        page["files"], ("size", "sha256"), (-1, 0, 2**63, 10**30, "1", None, [], {}, 1e999)
    ):
        if page["files"][name][key] != value:
            changed = page["files"] | {name: page["files"][name] | {key: value}}
            yield "entry", json.dumps(page | {"files": changed}).encode()
    yield from (
        ("file missing", json.dumps(page | {"files": {n: e for n, e in page["files"].items() if n != name}}).encode())
        for name in page["files"]
    )
    yield from (
        ("entry missing", json.dumps({key: value for key, value in page.items() if key != name}).encode())
        for name in ("format", "files")
    )
    yield from (
        ("files", json.dumps(page | {"files": value}).encode())
        for value in ([], None, 3, "a", {}, [["state.json", entry]])
    )


def page_families() -> Iterator[tuple[str, bytes]]:
    tags = (
        "python/object/apply:os.abort",
        "python/name:os.system",
        "python/module:os",
        "python/object/new:os.x",
        "binary",
        "set",
        "omap",
        "timestamp",
        "x",
    )
    yield from (("tag", f"seed: !!{tag} []\n".encode()) for tag in tags)
    yield from (("tag", f"seed: !{tag} 1\n".encode()) for tag in ("thing", "env", "include", "join"))
    for key, value in (("seed", 1), ("seed", True), ("kl", {"free": 1}), ("encoder", [4])):
        yield from (("unknown key", f"{key}{letter}: {json.dumps(value)}\n".encode()) for letter in "_x1.")
    wrong = {
        "seed": (
            "a",
            "2.5",
            "true",
            "no",
            "null",
            "[1]",
            "{a: 1}",
            "-1",
            "1e300",
            ".nan",
            ".inf",
            "9" * 400,
            "0x" + "f" * 5000,
            "'1'",
            "2024-01-01",
        ),
        "task": ("3", "true", "null", "[a]", "{a: 1}", "2024-01-01", "1.5", "!!binary YQ=="),
        "kl": (
            "3",
            "a",
            "[]",
            "null",
            "{balance: 2}",
            "{balance: a}",
            "{strict_elbo: 0}",
            "{strict_elbo: no}",
            "{free: -1}",
            "{free: .inf}",
        ),
        "encoder": (
            "{kernels: 4}",
            "{kernels: []}",
            "{kernels: [a]}",
            "{kernels: [4.5]}",
            "{kernels: [[4]]}",
            "{depth: 0}",
            "{act: no_such}",
        ),
    }
    yield from (("value", f"{key}: {value}\n".encode()) for key, values in wrong.items() for value in values)
    yield from (
        ("key", f"{key}: 1\n".encode())
        for key in ("1", "null", "true", "1.5", "[a]", "? {a: 1}\n", "2024-01-01", "!!binary YQ==", "'\\0'")
    )
    yield from (("nesting", piece * 3000) for piece in (b"[", b"{", b"- ", b"? ", b"a: {", b"[{"))
    for count in (20, 100, 300):
        yield (
            "aliases",
            b"a0: &a0 [1]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, count)),
        )
        yield (
            "merges",
            b"a0: &a0 {b: 1}\n"
            + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (n, n, n - 1, n - 1) for n in range(1, count)),
        )
        yield "chain", b"a0: &a0 {b: 1}\n" + b"".join(b"a%d: &a%d {b: *a%d}\n" % (n, n, n - 1) for n in range(1, count))
    yield from (
        ("inside itself", text)
        for text in (b"a: &a [*a]", b"a: &a {b: *a}", b"&a a: *a", b"&a [*a, *a]", b"a: &a {<<: *a}")
    )
    yield from (("encoding", PAGE.decode().encode(name)) for name in ("utf-16", "utf-32"))
    texts = (
        b"",
        b"- 1",
        b"3",
        b"a: 1\n---\nb: 2",
        b"%YAML 1.1\n---\nseed: 1",
        b"seed:\n\t1",
        b"seed: 1\nseed: 2",
        b"seed: \x00",
        b"\xff\xfe",
        b"seed: 1: 2",
    )
    yield from (("not a page", text) for text in texts)
    yield from (("large", text) for text in (b"seed: " + b"1" * 50_000, b"#" * (1 << 20), b"a: " + b"x" * (1 << 24)))


def classed(subjects: dict[str, Subject]) -> list[tuple[str, str, bytes]]:
    """(subject, family, bytes) of every classed input; all of them must be refused."""
    families = {
        "npz episode": npz_families(),
        "dataset card": card_families(),
        "checkpoint manifest": manifest_families(subjects["checkpoint manifest"].good),
        "YAML page": page_families(),
    }
    return [(subject, family, data) for subject, inputs in families.items() for family, data in inputs]


# --- what must hold ---------------------------------------------------------------------------------------------------


class Count:
    """Counts of what happened to the inputs of one family."""

    def __init__(self):
        self.inputs = self.same = self.other = self.refused = 0
        self.slowest = 0.0


def judge(subject: Subject, path: Path, expected: object, data: bytes, count: Count) -> str:
    """Read one input and count what comes of it. Returns what is wrong with that, or an empty text."""
    path.write_bytes(data)
    count.inputs += 1
    started = time.process_time()
    try:
        content = subject.read(path)
    except SemopoError as error:
        count.refused += 1
        line = one_line(error).replace(str(path.parent), "")
        wrong = next((f"the line has {word!r}: {line}" for word in FORBIDDEN if word in line), "")
        wrong = wrong or (f"a line of {len(line)} characters: {line}" if len(line) > LONGEST else "")
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    else:
        same = content == expected
        count.same, count.other = count.same + same, count.other + (not same)
        wrong = "" if same or not subject.strict else "changed content is accepted"
    seconds = time.process_time() - started
    count.slowest = max(count.slowest, seconds)
    return wrong or (f"{seconds:.1f} s" if seconds > SECONDS else "")


def table(counts: dict[str, Count]) -> str:
    head = f"{'family':45}{'inputs':>8}{'unchanged':>11}{'other, valid':>14}{'refused':>9}{'slowest ms':>12}"
    rows = [
        f"{name:45}{c.inputs:8}{c.same:11}{c.other:14}{c.refused:9}{1000 * c.slowest:12.0f}"
        for name, c in counts.items()
    ]
    return "\n".join(["", head, *rows])


def show(capsys, share: int, text: str) -> None:
    """The whole run's table is worth a look even where all is well."""
    with capsys.disabled() if share == 1 else contextlib.nullcontext():
        print(text)


@pytest.fixture
def bounded():
    """The whole test adds no more memory to this process than `MEMORY`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY >> 10


SHARE = pytest.mark.parametrize("share", [10, pytest.param(1, marks=pytest.mark.full)])


@SHARE
def test_G7_G9_classed_inputs_are_refused_in_one_line(subjects, tmp_path, bounded, capsys, share):
    inputs = classed(subjects)
    assert len(inputs) >= LEAST_CLASSED
    counts: dict[str, Count] = {}
    faults = []
    for name, family, data in inputs[::share]:
        subject = subjects[name]._replace(strict=True)  # no content is the expected one
        wrong = judge(subject, subject.place(tmp_path), None, data, counts.setdefault(f"{name}: {family}", Count()))
        faults += [f"{name}: {family}: {wrong}: {data[:80]!r}"] if wrong else []
    subjects["checkpoint manifest"].place(tmp_path).write_bytes(subjects["checkpoint manifest"].good)
    show(capsys, share, table(counts))
    assert faults == []


@pytest.mark.parametrize("name", ["dataset card", "YAML page"])
def test_G7_a_byte_order_mark_changes_nothing(subjects, tmp_path, name):
    """Editors of Windows put it before a text in UTF-8."""
    subject = subjects[name]
    path = subject.place(tmp_path)
    path.write_bytes(subject.good)
    expected = subject.read(path)
    path.write_bytes(codecs.BOM_UTF8 + subject.good)
    assert expected is not None and subject.read(path) == expected


@SHARE
@pytest.mark.parametrize("name", MUTATED)
def test_G7_G9_D04_mutated_inputs_are_refused_in_one_line_or_read_as_they_were(
    subjects, tmp_path, bounded, capsys, name, share
):
    subject, count = subjects[name], Count()
    path = subject.place(tmp_path)
    path.write_bytes(subject.good)
    expected = subject.read(path)
    faults = []
    for index in range(MUTATED[name] // share):
        data = mutate(subject.good, np.random.default_rng([zlib.crc32(name.encode()), index]))
        wrong = judge(subject, path, expected, data, count)
        faults += [f"{index}: {wrong}: {data[:80]!r}"] if wrong else []
    path.write_bytes(subject.good)
    show(capsys, share, table({f"{name}, mutated": count}))
    assert faults == []
    assert count.refused > count.inputs / 2 or not subject.strict


@SHARE
def test_G7_V02_mutated_videos_give_frames_or_a_reason(tmp_path, capsys, share):
    """Decoded in a process of its own with limits. Frames may differ: a video carries no checksum."""
    goods = []
    for name, codec, layout in (
        ("a.mkv", "ffv1", "gray"),
        ("b.mp4", "libx264", "yuv420p"),
        ("c.avi", "mpeg4", "yuv420p"),
    ):
        settings = {
            "pix_fmt_in": "gray",
            "pix_fmt_out": layout,
            "codec": codec,
            "macro_block_size": 1,
            "ffmpeg_log_level": "error",
        }
        writer = imageio_ffmpeg.write_frames(str(tmp_path / name), (32, 32), fps=10, **settings)
        writer.send(None)
        for value in range(6):
            writer.send(np.full((32, 32), 40 * value, np.uint8))
        writer.close()
        goods.append((tmp_path / f"mutated-{name}", (tmp_path / name).read_bytes()))
    count = Count()
    for index in range(VIDEOS // share):
        path, good = goods[index % len(goods)]
        path.write_bytes(mutate(good, np.random.default_rng([0, index])))
        started = time.monotonic()
        count.inputs += 1
        try:
            frames = [frame for frame, _ in zip(decode(path, size=8, color="grey"), range(1000), strict=False)]
            assert frames and {frame.shape for frame in frames} == {(8, 8, 1)}
            count.other += 1
        except SemopoError as error:
            count.refused += 1
            assert len(one_line(error)) <= LONGEST and not any(word in one_line(error) for word in FORBIDDEN)
        count.slowest = max(count.slowest, time.monotonic() - started)
    show(capsys, share, table({"video, mutated": count}))
    assert count.slowest < VIDEO_SECONDS
