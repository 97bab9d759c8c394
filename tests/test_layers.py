"""Which way imports go, and rules of the source that a reader relies on. Reads the source; runs almost nothing of it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import semopo_tf
from semopo_tf import config

PACKAGE = Path(semopo_tf.__file__).parent
ROOT = PACKAGE.parent
SOURCES = {path.stem: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}

# Line and column of every module. A module imports only from smaller lines, and only from its own column or the shared one; the entry
# column joins all others. So the columns meet on the entry lines alone: learning sees neither data nor simulators, acting sees no learning.
TABLE = {
    #           line: modules
    "shared": {0: ["types", "errors"], 1: ["files", "npz", "untrusted", "random", "cost", "statistics"]},
    "data": {2: ["cards", "episodes", "foreign"], 3: ["sampler", "hdf5", "sums"], 4: ["reader"], 5: ["convert"]},
    "learning": {
        1: ["convolutions"],
        2: ["distributions", "losses", "nets", "optim", "imagination", "devices", "recurrence", "remat"],
        3: ["rssm", "actor_critic", "engine", "adversary"],
        4: ["world_model"],
        5: ["agent"],
    },
    "acting": {2: ["driving", "rendering", "rollout", "exbmdp"], 3: ["simulation", "videos"], 4: ["envs"], 5: ["scoring"]},
    "running": {1: ["alarms"], 2: ["config", "run", "checkpoints", "stopping"]},
    "entry": {
        6: ["wiring", "collect", "data", "doctor", "checkpoint", "dump", "published", "originals", "runs", "tables", "figures"],
        7: ["trainer", "bench", "replay_dump", "groups", "page"],
        8: ["training", "evaluation", "score_tables", "aggregates", "plots", "pictures", "probes"],
        9: ["probe", "analysis", "export", "report", "__init__"],
        10: ["sweep"],
        11: ["summary"],
    },
}
PLACE = {module: (line, column) for column, lines in TABLE.items() for line, modules in lines.items() for module in modules}
ENTRY = {module for module, (_, column) in PLACE.items() if column == "entry"}
# Narrower than the table: all that these modules may import of the package.
ONLY = {
    "types": set(),
    "errors": set(),
    "config": {"errors", "untrusted"},
    "random": set(),
    "losses": set(),
    "imagination": {"types", "random"},
    "actor_critic": {"types", "random", "distributions", "losses", "nets", "optim"},
}
TENSORFLOW = {"tensorflow", "tensorflow_probability", "keras", "tf_keras"}
SIMULATORS = {"dm_control", "mujoco", "gym", "gymnasium"}
WITH_TENSORFLOW = {"random", "sampler", "trainer", "evaluation", "probe", "analysis", "export", "doctor", "bench", "replay_dump"} | {
    m for m, (_, column) in PLACE.items() if column == "learning"
}


def imports(tree: ast.AST, *, top_level_only: bool = False) -> set[str]:
    """Modules that a source imports: `semopo_tf.x` for ours, the first name for others. Imports for type checkers count too."""
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name if alias.name.startswith("semopo_tf.") else alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.add("a relative import")
            elif node.module == "semopo_tf":
                found |= {f"semopo_tf.{alias.name}" for alias in node.names}
            else:
                found.add(node.module if node.module.startswith("semopo_tf.") else node.module.split(".")[0])
    return found


def ours(tree: ast.AST) -> set[str]:
    return {name.removeprefix("semopo_tf.") for name in imports(tree) if name.startswith("semopo_tf.")}


def wrong_way(module: str, imported: str) -> bool:
    (line, column), (other_line, other_column) = PLACE[module], PLACE[imported]
    return other_line >= line or not (column == "entry" or other_column in (column, "shared"))


def test_every_module_is_in_the_table_and_every_entry_is_a_module():
    assert sorted(PLACE) == sorted(SOURCES)
    assert sum(len(modules) for lines in TABLE.values() for modules in lines.values()) == len(PLACE)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_up_the_table(module):
    imported = ours(SOURCES[module])
    assert {name for name in imported if name not in PLACE} == set()
    assert {name for name in imported if wrong_way(module, name)} == set()
    assert imported <= ONLY.get(module, imported)
    assert "a relative import" not in imports(SOURCES[module])


def test_the_check_itself_finds_wrong_imports():
    """Learning from data, acting from learning, down the table, and sideways."""
    wrong = [
        ("world_model", "sampler"),
        ("agent", "episodes"),
        ("envs", "agent"),
        ("rssm", "world_model"),
        ("rssm", "actor_critic"),
        ("run", "agent"),
    ]
    assert all(wrong_way(module, imported) for module, imported in wrong)
    assert not wrong_way("agent", "world_model")
    assert ours(ast.parse("def f():\n    from semopo_tf import agent\n    import semopo_tf.envs")) == {"agent", "envs"}


@pytest.mark.parametrize("module", sorted(set(SOURCES) - ENTRY))
def test_only_the_entry_lines_import_configuration_and_run(module):
    assert ours(SOURCES[module]) & {"config", "run", "checkpoints"} == set()


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_tensorflow_is_imported_by_learning_and_its_entries_alone(module):
    if module not in WITH_TENSORFLOW:
        assert imports(SOURCES[module]) & TENSORFLOW == set()
    if module in ENTRY - {"trainer"}:
        assert imports(SOURCES[module], top_level_only=True) & TENSORFLOW == set()


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_simulators_are_imported_inside_functions_and_in_one_module(module):
    assert imports(SOURCES[module], top_level_only=True) & SIMULATORS == set()
    assert imports(SOURCES[module]) & SIMULATORS == ({"dm_control"} if module == "simulation" else set())


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_h5py_is_imported_inside_functions_and_in_one_module(module):
    assert imports(SOURCES[module], top_level_only=True) & {"h5py"} == set()
    assert imports(SOURCES[module]) & {"h5py"} == ({"h5py"} if module == "hdf5" else set())


def loaded_by(code: str, names: set[str]) -> set[str]:
    """Which of the named packages a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys\nprint(*sorted({names!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_data_records_and_environments_load_neither_tensorflow_nor_a_simulator():
    modules = "config, checkpoint, checkpoints, episodes, run, envs, rollout, collect, data, doctor, training, evaluation, report, summary"
    assert loaded_by(f"import semopo_tf\nfrom semopo_tf import {modules}", TENSORFLOW | SIMULATORS) == set()


def test_a_wrong_flag_is_refused_before_tensorflow_is_loaded():
    code = "from semopo_tf import training, errors\ntry: training.main(['--sed', '1'])\nexcept errors.ConfigError: pass\nelse: raise SystemExit(1)"
    assert loaded_by(code, TENSORFLOW | SIMULATORS) == set()


def test_the_environment_of_tensorflow_is_set_by_importing_the_package():
    """TensorFlow reads both when it is imported, so they must be there before."""
    code = "import os, sys\nimport semopo_tf\nassert os.environ['TF_ENABLE_ONEDNN_OPTS'] == '1' and 'TF_CPP_MIN_LOG_LEVEL' in os.environ"
    assert loaded_by(code, TENSORFLOW) == set()


# --- no method is named where methods are run -----------------------------------------------------------------------------------------------

METHODS = {
    *config.read_yaml(config.CONFIG_FILE)["methods"],
    "se_cs",
    "tia",
    "lompo",
    "bc",
    "drq",
    "drq_bc",
    "drq_cql",
    "infogating",
    "dreamer",
}
FRONTS = {"train.py": ROOT / "train.py", "evaluate.py": ROOT / "evaluate.py"}
RUNNERS = FRONTS | {f"semopo_tf/{name}.py": PACKAGE / f"{name}.py" for name in ("training", "trainer", "evaluation", "engine")}


def docstrings(tree: ast.AST) -> set[int]:
    """Constants that are docstrings, by identity."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def identifiers(node: ast.AST) -> list[str]:
    """Every name that a node writes down."""
    fields = ("id", "attr", "arg", "name", "asname", "module")
    return [value for field in fields if isinstance(value := getattr(node, field, None), str)]


def methods_named(tree: ast.AST) -> list[str]:
    """Where code, as opposed to documentation, names a method or asks which one runs: `line: what`.

    A text may name one only as the example of a command line, which shows by the flag --configs in it.
    """
    found, documentation = [], docstrings(tree)
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part): text for text in texts for part in text.values}
    for node in ast.walk(tree):
        for name in identifiers(node):
            words = set(name.split("."))
            if name == "method" or words & METHODS:
                found.append(f"{getattr(node, 'lineno', '?')}: {name}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            whole = ast.unparse(parts.get(id(node), node))
            named = {*re.findall(r"\w+", node.value.lower())} & METHODS
            if node.value == "method" or (named and "--configs" not in whole):
                found.append(f"{node.lineno}: {node.value!r}")
    return found


@pytest.mark.parametrize("path", RUNNERS.values(), ids=RUNNERS)
def test_what_runs_a_method_names_none_and_asks_for_none(path):
    assert methods_named(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "if config.method == 'x': pass",
        "if config['method'] == x: pass",
        "agent = semopo()",
        "from semopo_tf.baselines import lompo",
        "import semopo_tf.lompo",
        "if kind == 'offline_dv2': pass",
        "x = {'semopo': 1}",
        "x = f'{a} tia'",
        "def train(method): pass",
    ],
)
def test_the_rule_finds_what_it_looks_for(line):
    assert methods_named(ast.parse(line)) != []


def test_the_rule_allows_examples_of_command_lines():
    assert methods_named(ast.parse("'''SeMOPO: semopo.'''\nraise E(f'{key}: e.g. --configs semopo walker_walk')\nimport semopo_tf")) == []


@pytest.mark.parametrize("path", FRONTS.values(), ids=FRONTS)
def test_the_top_level_commands_are_fronts_of_five_lines(path):
    tree = ast.parse(path.read_text())
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.Match)]
    assert [ast.unparse(branch.test) for branch in branches] == ["__name__ == '__main__'"]
    assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 5


# --- rules of the source --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"engine"}))
def test_only_the_engine_compiles(module):
    said = [
        node.lineno for node in ast.walk(SOURCES[module]) if isinstance(node, ast.keyword) and node.arg in ("jit_compile", "experimental_compile")
    ]
    assert said == []


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_assertion_stands_in_the_package(module):
    """They vanish under `python -O`, and their messages are not for users."""
    assert [node.lineno for node in ast.walk(SOURCES[module]) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_handler_swallows_every_error(module):
    broad = {"Exception", "BaseException"}
    handlers = [node for node in ast.walk(SOURCES[module]) if isinstance(node, ast.ExceptHandler)]
    caught = [(node.lineno, {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else broad) for node in handlers]
    suppressed = [node for node in ast.walk(SOURCES[module]) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")]
    caught += [(node.lineno, {argument.id for argument in node.args if isinstance(argument, ast.Name)}) for node in suppressed]
    assert [line for line, names in caught if names & broad] == []
