"""Random numbers against a NumPy twin, in every way TensorFlow can run them; and nothing else in the package draws."""

import ast
import itertools
import zlib
from pathlib import Path
from statistics import NormalDist

import numpy as np
import philox
import pytest
import tensorflow as tf

import semopo_tf
from semopo_tf import random
from semopo_tf.random import Key

PACKAGE = Path(semopo_tf.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MODES = {
    "eager": lambda function: function,
    "graph": lambda function: tf.function(function, autograph=False),
    "xla": lambda function: tf.function(function, autograph=False, jit_compile=True),
}


def all_draws(step):
    """Every kind of draw at once, so that each mode compiles once. 37 words: not a multiple of the four of a block."""
    key = Key(2**32 - 1, "model", step)
    limits = tf.constant([[1], [2], [3], [7], [1000], [2**31 - 1]], tf.int64)
    return (
        random.bits(key, "a", [37]),
        random.bits(key, "a", [2, 3, 5]),
        random.integers(key, "b", [6, 50], limits),
        random.uniform(key, "c", [4001]),
        random.normal(key, "d", [4001]),
    )


@pytest.fixture(scope="module", params=MODES)
def draws(request):
    """step -> `all_draws(step)` as arrays, in one of the three modes."""
    function = MODES[request.param](all_draws)
    return lambda step: [draw.numpy() for draw in function(tf.constant(step, tf.int64))]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # The known answers that the authors publish with Random123 (kat_vectors, philox4x32 10).
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_twin_gives_the_published_known_answers(counter, key, expected):
    assert [int(word) for word in philox.philox(counter, key)] == expected


@pytest.mark.parametrize("step", [0, 1, 25_099, 2**32 + 5])  # the last one needs the upper word of the step
def test_every_draw_equals_the_numpy_twin(draws, step):
    words, cube, integers, uniform, normal = draws(step)

    def twin(stream, count):
        return philox.bits(2**32 - 1, "model", stream, step, count)

    np.testing.assert_array_equal(words, twin("a", 37))
    np.testing.assert_array_equal(cube, twin("a", 30).reshape(2, 3, 5))
    limits = np.repeat([1, 2, 3, 7, 1000, 2**31 - 1], 50)
    np.testing.assert_array_equal(integers.reshape(-1), philox.integers(2**32 - 1, "model", "b", step, 300, limits))
    unit = philox.unit(twin("c", 4001))
    np.testing.assert_array_equal(uniform, unit.astype(np.float32))  # exact: 24 bits
    expected = [NormalDist().inv_cdf(value) for value in philox.unit(twin("d", 4001))]
    np.testing.assert_allclose(normal, expected, rtol=1e-6, atol=1e-6)
    assert (words.dtype, integers.dtype, uniform.dtype, normal.dtype) == (np.uint32, np.int64, np.float32, np.float32)


def test_a_draw_over_many_threads_equals_the_twin():
    """Large draws are split over threads, each of which skips ahead in the counter."""
    count = 1 << 18
    drawn = random.bits(Key(7, "policy", tf.constant(3, tf.int64)), "long", [count]).numpy()
    np.testing.assert_array_equal(drawn, philox.bits(7, "policy", "long", 3, count))


def test_seed_and_step_may_be_tensors_or_numbers():
    """Evaluation draws under the seed of an episode, which is a tensor."""
    drawn = [
        random.bits(Key(seed, "evaluation", 4), "state", [8]).numpy().tolist()
        for seed in (3_000_000_000, tf.constant(3_000_000_000, tf.int64))
    ]
    assert drawn[0] == drawn[1] == philox.bits(3_000_000_000, "evaluation", "state", 4, 8).tolist()


def test_neighbouring_keys_share_no_word():
    """500 words each of neighbouring steps, seeds, domains and streams: 8 x 500 words that happen to hold no
    repetition.
    """
    base = (5, "model", "endo_posterior", 10)
    changed = [base]
    changed += [(5, "model", "endo_posterior", step) for step in (9, 11)]
    changed += [(seed, "model", "endo_posterior", 10) for seed in (4, 6)]
    changed += [
        (5, "policy", "endo_posterior", 10),
        (5, "model", "exo_posterior", 10),
        (10, "model", "endo_posterior", 5),
    ]
    words = [
        random.bits(Key(seed, domain, tf.constant(step, tf.int64)), stream, [500]).numpy()
        for seed, domain, stream, step in changed
    ]
    # Chance that 4000 independent words hold a repetition: 4000**2 / 2 / 2**32 = 0.2 %; a shared block would repeat
    # four at once.
    assert len(np.unique(np.concatenate(words))) == 8 * 500


def test_a_longer_draw_begins_with_the_shorter_one():
    key = Key(1, "model", tf.constant(0, tf.int64))
    np.testing.assert_array_equal(random.bits(key, "a", [64])[:10], random.bits(key, "a", [10]))


def test_uniform_stays_inside_the_open_interval_at_the_extreme_bits():
    extremes = random._open_unit(tf.constant([0, 2**32 - 1], tf.uint32)).numpy()
    # (0 + 1/2) / 2**23 and (2**23 - 1/2) / 2**23, both exact in float32.
    np.testing.assert_array_equal(extremes, np.float32([2**-24, 1 - 2**-24]))


def test_moments_of_the_draws():
    key = Key(0, "model", tf.constant(0, tf.int64))
    count = 200_000
    uniform, normal = (
        random.uniform(key, "u", [count]).numpy(),
        random.normal(key, "n", [count]).numpy().astype(np.float64),
    )
    # Five standard errors: sqrt(1 / 12 / n), 1 / sqrt(n) for the normal's mean, sqrt(2 / n) for its variance.
    assert abs(uniform.mean() - 0.5) < 5 * np.sqrt(1 / 12 / count)
    assert abs(normal.mean()) < 5 / np.sqrt(count)
    assert abs(normal.var() - 1) < 5 * np.sqrt(2 / count)
    assert np.abs(normal).max() < 5.3


def test_integers_are_uniform_over_a_limit_that_is_no_power_of_two():
    count, limit = 70_000, 7
    drawn = random.integers(Key(0, "model", tf.constant(0, tf.int64)), "i", [count], limit).numpy()
    # Multinomial: 10 000 each, standard deviation sqrt(n p (1 - p)) = 93.
    assert np.abs(np.bincount(drawn, minlength=limit) - count / limit).max() < 5 * np.sqrt(
        count / limit * (1 - 1 / limit)
    )
    assert (drawn.min(), drawn.max()) == (0, limit - 1)


# --- the streams of the package ---------------------------------------------------------------------------------------

DRAWS = {
    "bits": 1,
    "integers": 1,
    "uniform": 1,
    "normal": 1,
    "draw": 1,
    "draw_members": 1,
}  # name -> position of the stream argument
# What the placeholders of stream names stand for: the branches of the world models and the views of the sampler.
VIEWS = ("model", "policy", "all", "valid")
PLACEHOLDERS = {"self.name": ("endo", "exo", "joint"), "view": VIEWS, "self._view": VIEWS}


def called_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def stream_templates() -> list[tuple[str, ast.expr]]:
    """(module, expression of the stream's name) at every call that draws and names its stream there."""
    found = []
    for module, tree in SOURCES.items():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and called_name(node) in DRAWS):
            stream = call.args[DRAWS[called_name(call)]] if len(call.args) > DRAWS[called_name(call)] else None
            if isinstance(stream, ast.JoinedStr) or (
                isinstance(stream, ast.Constant) and isinstance(stream.value, str)
            ):
                found.append((module, stream))
    return found


def names_of(template: ast.expr) -> list[str]:
    """All names that a literal or f-string can take."""
    if isinstance(template, ast.Constant):
        return [template.value]
    parts = [
        [part.value] if isinstance(part, ast.Constant) else PLACEHOLDERS[ast.unparse(part.value)]
        for part in template.values
    ]
    return ["".join(choice) for choice in itertools.product(*parts)]


def domains() -> set[str]:
    """Domains written out in `Key(...)` or a method that makes one, and the stages, whose names are domains too."""
    first = {"Key": 1, "key": 0, "_key": 0, "Stage": 0}
    calls = [
        node
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called_name(node) in first
    ]
    written = [call.args[first[called_name(call)]] for call in calls]
    return {node.value for node in written if isinstance(node, ast.Constant)}


def test_the_scan_finds_the_streams_that_exist():
    """Guards the two tests below: they must not pass because the scan has gone blind."""
    names = {name for _, template in stream_templates() for name in names_of(template)}
    assert {
        "endo_posterior",
        "exo_member",
        "joint_posterior",
        "imagined_action",
        "imagined_state",
        "model_episode",
        "policy_start",
    } <= names
    assert {"model", "policy", "evaluation", "valid", "report"} <= domains()


def test_every_stream_name_is_used_at_one_place():
    """Two draws of one name at one step would be equal, that is, fully dependent."""
    names = [name for _, template in stream_templates() for name in names_of(template)]
    assert sorted(set(names)) == sorted(names)


def test_no_two_streams_have_the_same_number():
    names = {name for _, template in stream_templates() for name in names_of(template)}
    pairs = list(itertools.product(sorted(domains()), sorted(names)))
    numbers = {random.stream_id(domain, name) for domain, name in pairs}
    assert len(numbers) == len(pairs)
    assert random.stream_id("model", "a") == zlib.crc32(b"model/a")


# --- nothing else draws -----------------------------------------------------------------------------------------------

SEEDED = {"default_rng", "Generator", "SeedSequence", "Philox", "RandomState"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain, '' for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def faults(tree: ast.AST) -> list[str]:
    """What draws random numbers behind our back, one line each."""
    found = []
    seeded_calls = {
        id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and (node.args or node.keywords)
    }
    annotations = {
        id(child)
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
        for child in ast.walk(annotation)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name in ("random", "secrets") for alias in node.names):
            found.append(f"line {node.lineno}: import random")
        if isinstance(node, ast.ImportFrom) and node.module in (
            "random",
            "secrets",
            "numpy.random",
            "tensorflow.random",
        ):
            found.append(f"line {node.lineno}: from {node.module}")
        if not isinstance(node, ast.Attribute):
            continue
        name = dotted(node)
        if name in ("tf.random", "keras.random", "keras.utils.set_random_seed") or (
            name.startswith("tf.raw_ops.") and "Random" in name
        ):
            found.append(f"line {node.lineno}: {name}")
        head, _, function = name.rpartition(".")
        if head not in ("np.random", "numpy.random") or id(node) in annotations:
            continue
        if function not in SEEDED or id(node) not in seeded_calls:
            found.append(f"line {node.lineno}: {name} without an explicit seed")
    return found


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"random.py"}))
def test_R12_no_module_draws_from_a_global_or_unseeded_generator(module):
    assert faults(SOURCES[module]) == []


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_sample_of_the_probability_library_is_used(module):
    """Our own `sample` methods take their noise or their key; the library's draw their own. It is imported in one
    module, for densities.
    """
    tree = SOURCES[module]
    imports = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and "tensorflow_probability" in ast.unparse(node)
    ]
    assert not imports or module == "nets/distributions.py"
    samples = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called_name(node) in ("sample", "experimental_sample_and_log_prob")
    ]
    if module == "nets/distributions.py":
        assert samples == []
    assert all(call.args and "seed" not in [keyword.arg for keyword in call.keywords] for call in samples)


@pytest.mark.parametrize(
    "line",
    [
        "tf.random.normal([3])",
        "tf.raw_ops.RandomUniform(shape=[1], dtype=tf.float32)",
        "np.random.rand(3)",
        "np.random.seed(0)",
        "np.random.default_rng()",
        "np.random.RandomState()",
        "import random",
        "from random import choice",
        "from numpy.random import default_rng",
        "draw = np.random.uniform",
        "keras.random.normal([3])",
    ],
)
def test_the_lint_finds_what_it_looks_for(line):
    assert faults(ast.parse(line)) != []


def test_the_lint_allows_explicit_seeds():
    allowed = [
        "np.random.default_rng(3)",
        "np.random.Generator(np.random.Philox(key=[1, 2]))",
        "np.random.SeedSequence([1])",
    ]
    assert faults(ast.parse("\n".join([*allowed, "def f(rng: np.random.Generator): ..."]))) == []
