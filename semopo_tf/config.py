"""The configuration: one YAML page, overlays in a fixed order, dotted flags, strict names and types.

    defaults <- preset <- method <- task <- size <- flags

A size may say more about single methods (`methods:` inside it).

Every value has the type of its default. A name that is not in `defaults` is an error with a suggestion.
"""

import contextlib
import copy
import difflib
import functools
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, Node

from semopo_tf.errors import ConfigError, cut, shown
from semopo_tf.storage.untrusted import decoded, read_whole

CONFIG_FILE = Path(__file__).with_name("configs.yaml")
KINDS = ("presets", "methods", "tasks", "sizes")
OF_METHODS = "methods"  # in an overlay: what it says about single methods, after the rest
MAX_BYTES = 24 << 10  # of one page; parsing more in plain Python would take seconds
MAX_DEPTH = 16
LARGEST = 1e308  # a larger whole number does not fit into a float
MAX_NODES = 20_000  # with every alias expanded

# Flags of the original SeMOPO and Offline DV2 command lines -> their names here.
ORIGINAL_FLAGS = {
    "offline_penalty_type": "--penalty.measure (meandis is mean_norm, log_prob_ens is log_prob_std)",
    "offline_lmbd": "--penalty.weight",
    "offline_lmbd_cons": "--penalty.weight (the original reads it only with automatic tuning, which is off: "
    "its penalty weight stays 5)",
    "offline_tune_lmbd": "nothing: the penalty weight is not tuned automatically; set --penalty.weight",
    "offline_datset_type": "--logdir (the original only names a folder by it)",
    "offline_train_model_only": "--steps.policy 0",
    "offline_model_loaddir": "--world_model",
    "offline_model_train_steps": "--steps.model",
    "offline_model_save_every": "--save_every",
    "offline_split_val": "--valid_fraction",
    "separate_wm": "--model.kind separated | joint, or the methods semopo and offline_dv2",
    "disen_scales.reward": "--model.drp True with --model.drp_scale; leave it out for the published 0.0",
    "disen_scales.disen_only": "--model.exo_only",
    "disen_action_type": "--model.exo_action (none is zero, main is taken)",
    "grad_heads": "--model.reward_gradient (none is False)",
    "num_reward_opt_iters": "--model.drp_updates, read with --model.drp True alone: at the published scale 0 the head "
    "has no effect",
    "replay.incremental": "--sampling conservative | uniform",
    "replay.sort_rewards": "--pool.order return | file",
    "replay.reverse": "nothing: sort order is --pool.order",
    "replay.minlen": "--batch.length",
    "replay.maxlen": "--batch.length",
    "dataset.batch": "--batch.size",
    "dataset.length": "--batch.length",
    "steps": "--steps.policy, and --steps.model for the world model",
    "eval_eps": "--eval.episodes",
    "eval_every": "--eval.every",
    "imag_horizon": "--imagination.horizon",
    "discount": "--imagination.discount",
    "discount_lambda": "--actor_critic.lambda_",
    "actor_ent": "--actor_critic.entropy_scale",
    "slow_target_update": "--actor_critic.slow_every",
    "action_repeat": "--env.action_repeat",
    "rssm.discrete": "--rssm.latent gaussian | categorical and --rssm.classes",
}
SUITES = ("dmc", "dmcdrv")  # prefixes of tasks, besides that of gym
ORIGINAL_OVERLAYS = {"dmc_vision": "released and a task, e.g. --configs released semopo walker_walk"}

# Allowed values of what is shown before a moving background.
SHOWN = {"background_color": ("grey", "rgb"), "background_split": ("train", "test"), "mask_rule": ("sky", "blue")}
# How the simulator draws: `fast` with a shadow map of a quarter of the resolution; `plain` without shadows and
# reflections, each pixel the mean of 2 x 2.
RENDERS = ("full", "fast", "plain")
# What moves before the background besides the agent: nothing, or a second body of the task.
DISTRACTORS = ("none", "agent")
# Allowed values; every other number is only checked against LIMITS.
CHOICES = {
    "sampling": ("conservative", "uniform"),
    "pool.order": ("file", "return"),
    "policy_starts": ("dataset", "pool"),
    "model.kind": ("separated", "joint"),
    "model.exo_action": ("absent", "zero", "taken"),
    "rssm.latent": ("gaussian", "categorical"),
    "rssm.ensemble_bodies": ("shared", "own"),
    "penalty.measure": ("sum_squares", "mean_norm", "log_prob_variance", "log_prob_std"),
    "penalty.reward": ("sampled", "minimum"),
    **{f"env.{key}": ("card", *choices) for key, choices in SHOWN.items()},
    **{f"without_card.{key}": choices for key, choices in SHOWN.items()},
    "env.render": ("card", *RENDERS),
    "env.distractor": ("card", *DISTRACTORS),
    "infogating.head": ("bc", "td3bc"),
    "infogating.mask": ("relu_tanh", "sigmoid"),
    "infogating.fill": ("zero", "gaussian", "uniform"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    "replay": ("auto", "device", "host"),
    "jit": ("auto", "full", "partial", "off"),
    **dict.fromkeys(
        (f"{net}.act" for net in ("encoder", "decoder", "rssm", "reward_head", "actor", "critic")),
        ("elu", "relu", "silu", "tanh"),
    ),
}
# Smallest and largest allowed value; keys not listed must be finite and not negative.
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("seed", "eval.seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("kl.balance", "imagination.discount", "actor_critic.lambda_", "actor_critic.data_share"), (0, 1)),
    "valid_fraction": (0, 0.9),
    "env.camera": (-1, 1e3),
    **dict.fromkeys(("online.episodes", "online.prefill", "online.updates", "online.snapshot_every"), (1, 1e6)),
    **dict.fromkeys(
        ("transitions.stack", "transitions.n_step", "drq.filters", "drq.feature", "drq.cql_actions"), (1, 1e4)
    ),
    **dict.fromkeys(("drq.discount", "drq.tau"), (0, 1)),
    **dict.fromkeys(
        [f"lompo.{key}" for key in ("real_batch", "latent_batch", "refresh_every", "latent_rows")], (1, 1e9)
    ),
    "lompo.tau": (0, 1),
    **{f"infogating.{key}": (1, 1e4) for key in ("filters", "patch", "feature", "energy_units", "max_k", "negatives")},
    "infogating.mask_filters": (8, 1e4),
    "actor_critic.temperature": (1e-3, 1e6),
    "sac.discount": (0, 1),
    "sac.tau": (0, 1),
    "sac.entropy": (-1e3, 1e3),
    "env.size": (8, 1e4),
    "batch.length": (2, 1e5),
    "imagination.horizon": (2, 1e3),
    **dict.fromkeys(("env.action_repeat", "eval.environments", "video.episodes"), (1, 1e3)),
    **dict.fromkeys(("video.context", "model.drp_updates"), (1, 1e4)),
    "batch.size": (1, 1e5),
    **dict.fromkeys(("keep_checkpoints", "eval.episodes"), (1, 1e6)),
    **dict.fromkeys(("log_every", "save_every", "actor_critic.slow_every", "pool.start", "pool.grow_every"), (1, 1e9)),
    **{f"{opt}.clip": (1e-9, 1e30) for opt in ("model_opt", "actor_opt", "critic_opt")},
    **{f"rssm.{key}": (1, 1e6) for key in ("deter", "stoch", "classes", "hidden", "ensemble", "ensemble_hidden")},
    **{f"{net}.{key}": (1, 1e4) for net in ("encoder", "decoder") for key in ("depth", "kernels")},
    **{f"{net}.{key}": (1, 1e5) for net in ("reward_head", "actor", "critic") for key in ("layers", "units")},
}
# Keys that may differ when a run is continued: they decide where and how fast it computes, not what.
OPERATIONAL = frozenset(
    {"logdir", "offline_dir", "cache_dir", "device", "updates_per_call", "keep_checkpoints", "replay", "xla_cache"}
)


# Keys that came later than others. A run that was started without them has their defaults, which change nothing.
LATER = frozenset(
    {"gpu_tune", "xla_cache", "model.continue_head", "min_length", "env.render", "env.distractor"}
    | {"rssm.ensemble_bodies", "penalty.reward", "model.reward_scale", "model.kl_scale", "model.kl_warmup"}
    | {"actor_critic.data_share", "actor_critic.temperature", "actor_critic.average"}
    | {f"online.{key}" for key in ("episodes", "prefill", "updates", "snapshot_every", "noise")}
    | {f"sac.{key}" for key in ("discount", "tau", "entropy")}
    | {f"transitions.{key}" for key in ("stack", "n_step", "shift", "resize")}
    | {f"drq.{key}" for key in ("filters", "feature", "discount", "tau", "std_first", "std_last", "std_updates")}
    | {f"lompo.{key}" for key in ("real_batch", "latent_batch", "latent_rows", "refresh_every", "noise", "tau")}
    | {f"drq.{key}" for key in ("noise_clip", "bc_weight", "cql_weight", "cql_actions")}
    | {f"infogating.{key}" for key in ("head", "filters", "patch", "feature", "mask_filters", "energy_units")}
    | {f"infogating.{key}" for key in ("mask", "fill", "mask_weight", "square_weight", "max_k", "negatives")}
    | {f"infogating.{key}" for key in ("warm_updates", "noisy_updates", "gate_at_test")}
)


class Config(Mapping[str, Any]):
    """A frozen nested mapping with attribute access: `config.rssm.deter`, `RSSM(**config.rssm)`.

    `read` collects the leaves that were read. `flags` are the keys that the command line named.
    """

    flags: tuple[str, ...] = ()

    def __init__(self, tree: Mapping[str, Any], *, _prefix: str = "", _read: set[str] | None = None):
        self._tree, self._prefix = dict(tree), _prefix
        self.read: set[str] = set() if _read is None else _read

    def __getitem__(self, key: str) -> Any:
        value = self._tree[key]
        if isinstance(value, dict):
            return Config(value, _prefix=f"{self._prefix}{key}.", _read=self.read)
        self.read.add(self._prefix + key)
        return tuple(value) if isinstance(value, list) else value

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"the configuration has no key {self._prefix}{key}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        if key not in ("_tree", "_prefix", "read", "flags"):
            raise AttributeError(f"the configuration is frozen, {self._prefix}{key} cannot be set")
        super().__setattr__(key, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def flat(self) -> dict[str, Any]:
        """Leaves by dotted name, in the order of the page."""
        return flatten(self._tree)

    def to_yaml(self) -> str:
        """This configuration as YAML text, from which `load_saved` restores it."""
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        # Escaped and unfolded: the emitter loses some Unicode line breaks, and spaces where it folds an escaped text.
        yaml.allow_unicode = False
        yaml.width = 1 << 20
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        buffer = io.StringIO()
        yaml.dump(self._tree, buffer)
        return buffer.getvalue()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def usage() -> str:
    """What `train.py --help` prints: how settings are written, the overlays, and the page with every flag."""
    text = read_whole(CONFIG_FILE, MAX_BYTES, follow=True)[0].decode()
    page = read_yaml(CONFIG_FILE)
    overlays = "\n".join(f"  {kind:8} {', '.join(page[kind])}" for kind in KINDS)
    return f"""\
usage: python train.py --configs METHOD [TASK] [SIZE] --task TASK --offline_dir DATA --logdir RUN [--FLAG VALUE ...]

Train a world model and a policy offline. The same command again continues a stopped run. --debug shows tracebacks.
Short tries: --configs semopo debug, or --steps.model 100 --steps.policy 100.

Overlays of --configs, at most one of each kind:
{overlays}

Every key below is a flag with its default: `batch: {{size: 64}}` is --batch.size 64.

{text}"""


def load(argv: Sequence[str], file: Path = CONFIG_FILE) -> Config:
    """Read a command line: `--configs NAME ...` and `--dotted.key VALUE` (or `--dotted.key=VALUE`) in any order.

    Raises:
      ConfigError: for an unknown overlay or flag (with the nearest names), a flag of the original code (with its name
        here), two overlays of one kind, a value of another type, or a value out of range.
    """
    page = read_yaml(file)
    names, flags = _split(list(argv))
    names = _with_task(names, flags, page["tasks"])
    tree = page["defaults"]
    chosen = dict(_in_order(names, page))
    for kind, name in chosen.items():
        overlay = {key: value for key, value in page[kind][name].items() if key != OF_METHODS}
        tree = _merge(tree, overlay, f"overlay {name}")
        of_method = page[kind][name].get(OF_METHODS, {}).get(chosen.get("methods"), {})
        tree = _merge(tree, of_method, f"overlay {name} for {chosen.get('methods')}")
    known = flatten(page["defaults"])
    for key, text in flags.items():
        _check_name(key, known)
        overlay = _parse(key, text, known[key])
        for section in reversed(key.split(".")):
            overlay = {section: overlay}
        tree = _merge(tree, overlay, f"--{key}")
    config = _checked(tree)
    config.flags = tuple(flags)
    return config


def task_name(task: str) -> str:
    """A task without the prefix of its suite, one of gym in the spelling of the others: `walker_walk` of
    dmcdrv_walker_walk, `car_racing` of gym_CarRacing-v2.
    """
    suite, _, name = task.partition("_")
    if suite == "gym":
        return re.sub("(?<=[a-z])(?=[A-Z])", "_", re.sub(r"-v\d+$", "", name)).lower()
    return name if suite in SUITES else task


def _with_task(names: list[str], flags: Mapping[str, str], tasks: Mapping[str, Any]) -> list[str]:
    """The overlays, with that of `--task` added: `--task dmcdrv_hopper_hop` also selects the hopper's weights.

    An overlay has the name of its task, with or without the suite's prefix.

    Raises:
      ConfigError: when the overlay and the flag name different tasks.
    """
    task = flags.get("task", "")
    wanted = [name for name in tasks if name in (task, task_name(task))]
    listed = [name for name in names if name in tasks]
    if wanted and listed and wanted != listed:
        raise ConfigError(
            f"--task {flags['task']}: expected the task of the overlay {listed[0]}, received another; leave one of "
            "them out"
        )
    return names if listed else names + wanted


def defaults() -> Config:
    """`defaults` alone."""
    return Config(read_yaml(CONFIG_FILE)["defaults"])


def load_saved(path: Path) -> Config:
    """The configuration that a run was started with, from its config.yaml.

    Raises:
      ConfigError: when the file is not a complete configuration of this version.
    """
    tree = read_yaml(path)
    known = read_yaml(CONFIG_FILE)["defaults"]
    if different := sorted((set(flatten(tree)) ^ set(flatten(known))) - (LATER - set(flatten(tree)))):
        raise ConfigError(
            f"{path}: expected the keys of this version, different: {', '.join(different[:5])[:120]}; use the version "
            "that wrote it"
        )
    return _checked(_merge(known, tree, str(path)))


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping as plain data.

    Raises:
      ConfigError: when the file is missing, too large, not YAML, or not a mapping.
    """
    try:
        text = decoded(read_whole(path, MAX_BYTES, follow=True)[0])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({str(getattr(error, 'strerror', error))[:100]}); expected a text file of YAML"
        ) from error
    try:
        tree = copy.deepcopy(_plain(text))
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        received = " ".join(str(error.problem or error.context).split())[:120]
        raise ConfigError(f"{path}: {line}expected YAML, received {received}") from error
    except (YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: expected YAML, received {' '.join(str(error).split())[:120]}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, received {type(tree).__name__}")
    return tree


@functools.lru_cache(maxsize=8)  # a sweep of hundreds of runs reads the same page for each
def _plain(text: str) -> Any:
    """Parse a YAML text, after measuring it: a few aliases can expand to more than fits into memory.

    Raises:
      YAMLError, ValueError, RecursionError: when it is not plain YAML.
    """
    if any(line.startswith(("%", "\ufeff")) for line in text.splitlines()):
        raise ValueError("a directive or a byte order mark inside the page, which change what follows; remove it")
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_DEPTH
    yaml.composer.warn_double_anchors = False
    node = yaml.compose(text)
    if node is None:
        return None
    nodes, depth = _measure(node, {})
    if nodes > MAX_NODES or depth > MAX_DEPTH:
        raise ValueError(f"aliases that stand for more than {MAX_NODES} values or {MAX_DEPTH} levels")
    return yaml.constructor.construct_document(node)


def _measure(node: Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """The number of values and levels below a node, with aliases expanded.

    Raises:
      ValueError: when it contains itself.
    """
    if id(node) not in known:
        known[id(node)] = None
        parts = node.value if isinstance(node, CollectionNode) else []
        flat = [item for part in parts for item in (part if isinstance(part, tuple) else (part,))]
        sizes = [_measure(item, known) for item in flat]
        known[id(node)] = (1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0))
    size = known[id(node)]
    if size is None:
        raise ValueError("an alias inside what it stands for")
    return size


def differing(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    one, two = first.flat(), second.flat()
    return {key: (one[key], two[key]) for key in one if one[key] != two[key]}


def _split(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Separate overlay names from flags."""
    names: list[str] = []
    flags: dict[str, str] = {}
    while argv:
        word = argv.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"{cut(word)}: expected a flag such as --seed 1; write values after their flag")
        key, equals, value = word[2:].partition("=")
        if key == "configs":
            names += [value] if equals else []
            while argv and not argv[0].startswith("--"):
                names.append(argv.pop(0))
            continue
        if key in ORIGINAL_FLAGS:
            raise ConfigError(f"--{key}: a flag of the original code; here it is {ORIGINAL_FLAGS[key]}")
        if not equals:
            if not argv or argv[0].startswith("--"):
                raise ConfigError(f"--{key}: expected a value after the flag, received none")
            value = argv.pop(0)
        if key in flags:
            raise ConfigError(f"--{key}: expected once, received twice")
        flags[key] = value
    return names, flags


def _in_order(names: list[str], page: dict[str, Any]) -> list[tuple[str, str]]:
    """(kind, name) of the listed overlays in the order of application."""
    available = {name: kind for kind in KINDS for name in page[kind]}
    chosen: dict[str, str] = {}
    for name in names:
        if name in ORIGINAL_OVERLAYS:
            raise ConfigError(f"--configs {name}: a name of the original code; here it is {ORIGINAL_OVERLAYS[name]}")
        if name not in available:
            raise ConfigError(
                f"--configs {cut(name)}: no such overlay{_suggest(name, available)}; there are {', '.join(available)}"
            )
        other = chosen.setdefault(available[name], name)
        if other != name:
            raise ConfigError(f"--configs {other} {name}: expected at most one of the {available[name]}, received two")
    return [(kind, chosen[kind]) for kind in KINDS if kind in chosen]


def _check_name(key: str, known: Mapping[str, Any]) -> None:
    if inside := [name for name in known if name.startswith(f"{key}.")]:
        raise ConfigError(f"--{key}: a section, expected one of its keys: {', '.join(inside)}")
    if key not in known:
        raise ConfigError(f"--{cut(key)}: unknown key{_suggest(key, known)}")


def _suggest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    # The right key in the wrong section, or in none (`--lr`), is a common mistake that edit distance alone misses.
    same = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = list(dict.fromkeys(near + same if "." in name else same + near))
    return f", did you mean {' or '.join(near[:3])}?" if near else ""


def _merge(tree: dict[str, Any], overlay: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """A copy of `tree` with the leaves of `overlay`, which may not add keys."""
    merged = dict(tree)
    for key, value in overlay.items():
        if key not in tree:
            raise ConfigError(
                f"{where}: unknown key {cut(f'{prefix}{key}')}{_suggest(prefix + str(key), flatten(tree, prefix))}"
            )
        if isinstance(tree[key], dict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {prefix}{key} is a section, received {shown(value)}")
            merged[key] = _merge(tree[key], value, where, f"{prefix}{key}.")
        else:
            merged[key] = _cast(f"{where}: {prefix}{key}", value, tree[key])
    return merged


def _parse(key: str, text: str, default: Any) -> Any:
    """Parse the value of a flag as the type of its default."""
    where = f"--{key}"
    if isinstance(default, bool):
        return _cast(where, {"true": True, "false": False}.get(text.lower(), text), default)
    if isinstance(default, str):
        return text
    if isinstance(default, list):
        return [_number(where, word, default[0]) for word in text.strip("[]").split(",")]
    return _number(where, text, default)


def _number(where: str, text: str, default: float) -> float:
    value: Any = text
    with contextlib.suppress(ValueError):
        value = int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    return _cast(where, value, default)


def _cast(where: str, value: Any, default: Any) -> Any:
    """Convert `value` to the type of `default`, if nothing is lost."""
    if isinstance(default, list) and isinstance(value, list | tuple) and value:
        return [_cast(where, item, default[0]) for item in value]
    plain_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool | str):
        if type(value) is type(default):
            return value
    elif isinstance(default, int) and plain_number and abs(value) < 2**63 and int(value) == value:
        return int(value)
    elif isinstance(default, float) and (isinstance(value, float) or (plain_number and abs(value) < LARGEST)):
        return float(value)
    raise ConfigError(f"{where}: expected {_kind(default)}, received {shown(value)}")


def _kind(default: Any) -> str:
    """What may be written for a value like the default, in words."""
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "a list of numbers"}
    return kinds[type(default)]


def _checked(tree: dict[str, Any]) -> Config:
    """The configuration, after checking every value against its range."""
    config = Config(tree)
    for key, value in config.flat().items():
        if key in CHOICES and value not in CHOICES[key]:
            near = _suggest(str(value), dict.fromkeys(CHOICES[key]))
            raise ConfigError(f"--{key}: expected one of {', '.join(CHOICES[key])}, received {shown(value)}{near}")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"--{key}: expected text without NUL characters, received {shown(value)}")
        low, high = LIMITS.get(key, (0, math.inf))
        for number in value if isinstance(value, list) else [value]:
            bounded = isinstance(number, int | float) and not isinstance(number, bool)
            if bounded and not (low <= number <= high and math.isfinite(number)):
                raise ConfigError(
                    f"--{key}: expected a finite number from {low:g} to {high:g}, received {shown(number)}"
                )
    if config.video.context >= config.video.length:
        raise ConfigError(
            f"--video.context: expected less than video.length = {config.video.length}, received {config.video.context}"
        )
    return Config(tree)
