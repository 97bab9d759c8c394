"""The page of a sweep: the language in which many runs are written down, and what it says.

    out: runs/point                       every run goes to <out>/<name>/<values of the grid>
    processes: 2                          runs, or episodes of a collection, at the same time; they share the cores
    variables: {videos: builtin:driving}  `{videos}` below is replaced; or as --set videos=FOLDER says
    behaviours:
      walker: [--task, walker_walk]       `semopo_tf.behave train` into <out>/behaviours/walker, if data need it;
                                          `{walker}` in the flags of data is that directory
    data:
      random: [--task, exbmdp_point, --policy, random, --episodes, 200]
                                        collected into <out>/data/random if missing; with --only, if a run needs it
    joined: {both: [random, medrep]}      one dataset of several from above, `semopo_tf.data join` into <out>/data/both
    flags: [--eval.every, 0]              added to the flags of every run
    runs:
      - name: semopo
        data: random                      a name from above, or a directory
        flags: [--configs, semopo, exbmdp_point, testbed]     `{seed}` in a flag is replaced by the grid's value
        grid: {seed: [1, 2, 3], penalty.weight: [0.0, 0.3]}   one run for each combination
        evaluate: {rgb: [--background_color, rgb]}   evaluate.py afterwards, for every name with these flags
        probe: true                       python -m semopo_tf.probe afterwards
        analyses: true                    python -m semopo_tf.analysis afterwards, or a list: --only these
      - name: '{method}'                  with `each`, this entry stands for several
        data: random
        flags: [--configs, '{method}', exbmdp_point, testbed]
        each: {method: [bc, lompo]}       one entry for each combination; `{method}` in its texts is replaced

Pages may have the same `out`: a run that one of them has finished is not repeated by another that names it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from semopo_tf import config as configuration
from semopo_tf.errors import ConfigError, shown, user_path
from semopo_tf.run.jobs import Command, Job, left, state

ANALYSES = ("uncertainty", "reconstruction", "entropy")  # of `analyses: true`, and of python -m semopo_tf.analysis
PLAYED = ("trust", "bound")  # need a simulator, and on its tasks minutes: only those that are asked for


class Row(NamedTuple):
    """One run: its commands, and where its results are."""

    name: str  # <name>/<key=value,...>
    logdir: Path
    data: Path
    position: int  # in its entry's grid
    commands: tuple[Command, ...]  # modules of the package with arguments, one after the other

    @property
    def left(self) -> list[Command]:
        """The commands still to run."""
        return left(self.logdir, self.commands)

    @property
    def done(self) -> bool:
        return not self.left

    @property
    def state(self) -> str:
        """Of the run, in a word or two."""
        if self.done:
            return "done"
        return state(self.logdir) or ("begun" if (self.logdir / "metrics.jsonl").exists() else "waiting")

    def state_with(self, given: Set[str]) -> str:
        """The state where an executor has the runs of these names: those that do not live wait in its queue."""
        word = self.state
        return "queued" if self.name in given and word not in ("done", "running", "stopping") else word

    def job(self, executor: str, threads: int) -> Job:
        """This run for an executor: its modules of the package become commands of Python."""
        commands = [Command(("-m", f"semopo_tf.{words[0]}", *words[1:]), leaves) for words, leaves in self.commands]
        return Job(self.name, self.logdir, Path.cwd(), executor, threads, tuple(commands))


def read_sweep(path: Path, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The page, checked: {out, processes, behaviours and collections: {directory: flags}, joined: {directory:
    directories}, rows}.

    Args:
      given: values of the page's variables.

    The flags of every run are resolved here, so that a mistake shows before anything starts.

    Raises:
      ConfigError: naming the key or run that is wrong.
    """
    page = configuration.read_yaml(path)
    require_kinds(page, str(path))
    if "out" not in page or not page.keys() & {"runs", "data"}:
        raise ConfigError(f"{path}: expected `out` (a directory) and `runs` (a list) or `data`")
    out, data, variables = user_path(page["out"]), page.get("data", {}), page.get("variables", {})
    if unknown := sorted(set(given or {}) - set(variables)):
        expected = ", ".join(variables) or "none, as the page has no variables"
        raise ConfigError(f"--set {unknown[0]}: expected one of {expected}")
    behaviours = {name: out / "behaviours" / name for name in page.get("behaviours", {})}

    values = variables | dict(given or {})
    trained = {behaviours[name]: filled(flags, values) for name, flags in page.get("behaviours", {}).items()}
    collections = {out / "data" / name: filled(flags, values | behaviours) for name, flags in data.items()}
    entries = [single for entry in page.get("runs", []) for single in copies(entry)]
    joined = read_joined(page.get("joined", {}), data, out, str(path))
    made = {*data, *page.get("joined", {})}
    rows = [row for entry in entries for row in expand(entry, out, made, page.get("flags", []), str(path))]
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: two runs are called {twice[0]}; give them different names")
    made_here = {"behaviours": trained, "collections": collections, "joined": joined}
    return {"out": str(out), "processes": page.get("processes", 1), **made_here, "rows": rows}


def read_joined(
    named: Mapping[str, Sequence[str]], data: Mapping[str, Any], out: Path, where: str
) -> dict[Path, list[Path]]:
    """The directories of joined datasets, each with those that it is made of.

    Raises:
      ConfigError: for a name that `data` has, or parts that it has not.
    """
    for name, parts in named.items():
        if name in data:
            raise ConfigError(f"{where}: joined: {name} is also a name of data; choose another")
        if unknown := [part for part in parts if part not in data]:
            raise ConfigError(
                f"{where}: joined: {name}: expected names of data ({', '.join(data) or 'there are none'}), received "
                f"{unknown[0]}"
            )
    return {out / "data" / name: [out / "data" / part for part in parts] for name, parts in named.items()}


class Kind(NamedTuple):
    """What a value of the page must be, as a test and in words."""

    fits: Callable[[Any], bool]
    words: str


TEXT = Kind(lambda x: isinstance(x, str) and x != "", "a text")
NAME = Kind(
    lambda x: TEXT.fits(x) and not PurePath(x).is_absolute() and ".." not in PurePath(x).parts,
    "a name below `out`, not absolute, without ..",
)
COUNT = Kind(lambda x: type(x) is int and x >= 1, "a whole number of at least 1")
TRUTH = Kind(lambda x: isinstance(x, bool), "true or false")
LIST = Kind(lambda x: isinstance(x, list), "a list")
WORDS = Kind(
    lambda x: isinstance(x, list) and all(isinstance(word, str | int | float) for word in x),
    "a list of words and numbers",
)
WORD = Kind(lambda x: isinstance(x, str | int | float), "a word or a number")
PARTS = Kind(
    lambda x: isinstance(x, list) and len(x) > 1 and all(isinstance(name, str) for name in x),
    "a list of at least two names of data",
)
VALUES = Kind(lambda x: WORDS.fits(x) and x != [], "a list of at least one word or number")
MAPPING = Kind(lambda x: isinstance(x, dict) and all(map(NAME.fits, x)), "a mapping of names, none absolute or with ..")
WHICH = Kind(
    lambda x: TRUTH.fits(x) or (isinstance(x, list) and x != [] and all(name in (*ANALYSES, *PLAYED) for name in x)),
    f"true, false or a list of {', '.join((*ANALYSES, *PLAYED))}",
)
PAGE = {"out": TEXT, "processes": COUNT, "data": MAPPING, "flags": WORDS, "runs": LIST}
PAGE |= {"variables": MAPPING, "behaviours": MAPPING, "joined": MAPPING}
RUN = {"name": NAME, "data": TEXT, "flags": WORDS, "each": MAPPING, "grid": MAPPING}
RUN |= {"evaluate": MAPPING, "probe": TRUTH, "analyses": WHICH}


def require_kinds(page: Mapping[str, Any], where: str) -> None:
    """Check the keys and values of the page, as described in the module's docstring.

    Raises:
      ConfigError: naming the first wrong one.
    """
    _require(page, PAGE, where)
    for section, kind in (("data", WORDS), ("behaviours", WORDS), ("variables", WORD), ("joined", PARTS)):
        _require(page.get(section, {}), dict.fromkeys(page.get(section, {}), kind), f"{where}: {section}")
    for number, entry in enumerate(page.get("runs", []), 1):
        _require({f"run {number}": entry}, {f"run {number}": MAPPING}, f"{where}: runs")
        run = f"{where}: run {entry.get('name', number)}"
        _require(entry, RUN, run)
        for section, kind in (("each", VALUES), ("grid", VALUES), ("evaluate", WORDS)):
            _require(entry.get(section, {}), dict.fromkeys(entry.get(section, {}), kind), f"{run}: {section}")


def _require(values: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Raise a ConfigError for a key that is not in `kinds`, or a value of another kind."""
    if unknown := values.keys() - kinds:
        expected = f"expected some of {', '.join(sorted(kinds))}"
        raise ConfigError(f"{where}: unknown key {min(unknown, key=str)!r}; {expected}")
    for key, value in values.items():
        if not kinds[key].fits(value):
            raise ConfigError(f"{where}: {key}: expected {kinds[key].words}, received {shown(value)}")


def filled(flags: Sequence[Any], values: Mapping[str, Any]) -> list[str]:
    """The words of a command line, with every `{key}` replaced by its value."""
    return [replaced(str(word), values) for word in flags]


def replaced(text: str, values: Mapping[str, Any]) -> str:
    """A text with every `{key}` replaced by its value."""
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", str(value))
    return text


def copies(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries that one with `each` stands for, the first key's values outermost; without it, the entry itself."""
    each = entry.get("each", {})

    def single(value: Any, chosen: Mapping[str, Any]) -> Any:
        if isinstance(value, dict):
            return {key: single(part, chosen) for key, part in value.items()}
        if isinstance(value, list):
            return [single(part, chosen) for part in value]
        return replaced(value, chosen) if isinstance(value, str) else value

    combinations = [dict(zip(each, values, strict=True)) for values in itertools.product(*each.values())]
    rest = {key: value for key, value in entry.items() if key != "each"}
    return [single(rest, chosen) for chosen in combinations]


def expand(entry: Mapping[str, Any], out: Path, made: Set[str], common: Sequence[Any], where: str) -> list[Row]:
    """One row for each combination of an entry's grid.

    Args:
      made: names of the datasets that the page makes.
      common: the flags of every run.
    """
    if "name" not in entry or "flags" not in entry or "data" not in entry:
        raise ConfigError(f"{where}: expected name, data and flags in every run, received {', '.join(entry)}")
    source = out / "data" / entry["data"] if entry["data"] in made else Path(entry["data"])
    grid, rows = entry.get("grid", {}), []
    for position, values in enumerate(itertools.product(*grid.values())):
        chosen = dict(zip(grid, values, strict=True))
        logdir = out / entry["name"] / (",".join(f"{key}={value}" for key, value in chosen.items()) or "run")
        own = filled(entry["flags"], chosen)
        flags = [*map(str, common), *own, *(word for key, value in chosen.items() for word in (f"--{key}", str(value)))]
        train = ("training", *flags, "--offline_dir", str(source), "--logdir", str(logdir))
        config = configuration.load(list(train[1:]))
        commands = [Command(train, ("DONE",))]
        for name, words in entry.get("evaluate", {}).items():
            leaf = f"evaluations/{name}.json"
            shown = ("--summary", str(logdir / leaf), "--task", config.task)
            commands.append(Command(("evaluation", "--logdir", str(logdir), *map(str, words), *shown), (leaf,)))
        if entry.get("probe"):
            words = ("probe", "--logdir", str(logdir), "--task", config.task)
            commands.append(Command(words, ("analysis/probe.json",)))
        if wanted := entry.get("analyses"):
            only = () if wanted is True else ("--only", *wanted, "--task", config.task)
            leaves = tuple(f"analysis/{name}.json" for name in (ANALYSES if wanted is True else wanted))
            commands.append(Command(("analysis", "--logdir", str(logdir), *only), leaves))
        rows.append(Row(f"{entry['name']}/{logdir.name}", logdir, source, position, tuple(commands)))
    return rows
