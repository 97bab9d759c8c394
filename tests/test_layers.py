"""Which way imports go, and rules of the source that a reader relies on. Reads the source, runs almost none of it."""

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


def module_of(path: Path) -> str:
    """`data.sampler` of semopo_tf/data/sampler.py; a folder's own name of its __init__."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


SOURCES = {module_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# What the modules of a folder may import of the package, besides their own folder and the vocabulary.
# `commands` are the modules at the top and the `__main__` of a folder: nothing but another command imports them.
VOCABULARY = {"types", "random", "errors"}
RULE = {
    "vocabulary": set(),
    "storage": set(),
    "nets": set(),
    "config": {"storage"},
    "data": {"storage"},
    "methods": {"nets"},
    "envs": {"storage"},
    "engine": {"storage", "nets", "config", "data", "methods", "envs"},
    "run": {"storage", "nets", "config", "data", "methods", "envs", "engine"},
    "report": {"storage", "config"},
    "commands": {"storage", "nets", "config", "data", "methods", "envs", "engine", "run", "report"},
}
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
# Single modules that a folder may import beyond its rule, or all that a module may import where that is less than its
# folder's rule.
ALSO = {"report": {"data.cards"}}
ONLY = {
    "types": set(),
    "errors": set(),
    "random": set(),
    "methods.losses": set(),
    "methods.imagination": {"types", "random", "methods.losses"},
    "report.svg": set(),
    "report.bootstrap": {"errors"},
}
TENSORFLOW = {"tensorflow", "tensorflow_probability", "keras", "tf_keras"}
SIMULATORS = {"dm_control", "mujoco", "gym", "gymnasium", "Box2D", "pygame"}
SIMULATED = {"envs.suite": {"dm_control"}, "envs.gym_adapter": {"gym", "gymnasium"}}  # module -> what it alone imports
CLUSTERS = {"ray", "submitit"}
CLUSTERED = {"run.executors.ray_tasks": {"ray"}, "run.executors.slurm_jobs": {"submitit"}}  # alike
# Folders, modules and commands that may import TensorFlow; commands do so inside functions, so that a wrong flag is
# refused at once.
WITH_TENSORFLOW = {"methods", "nets", "engine"}
MODULES_WITH_TENSORFLOW = {"random", "data.sampler", "run.trainer", "run.dump", "run.build"}
MODULES_WITH_TENSORFLOW |= {"data.replay", "data.transitions", "run.online", "run.players"}
INSIDE_FUNCTIONS = {"run.bound", "run.trained", "run.trial", "run.trust"}
COMMANDS_WITH_TENSORFLOW = {"probe", "analysis", "export", "doctor", "bench", "replay_dump"}


def imports(tree: ast.AST, *, top_level_only: bool = False) -> set[str]:
    """Modules that a source imports: `semopo_tf.x` for ours, the first name for others. Imports for type checkers count
    too.
    """
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {
                alias.name if alias.name.startswith("semopo_tf.") else alias.name.split(".")[0] for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.add("a relative import")
            elif node.module == "semopo_tf":
                found |= {f"semopo_tf.{alias.name}" for alias in node.names}
            else:
                found.add(node.module if node.module.startswith("semopo_tf.") else node.module.split(".")[0])
    return found


def ours(tree: ast.AST) -> set[str]:
    """Modules of the package that a source imports: `data.sampler`, `random`; of a name in a module, the module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.removeprefix("semopo_tf.") for alias in node.names if (name := alias.name) != "semopo_tf"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "semopo_tf":
            base = node.module.removeprefix("semopo_tf").removeprefix(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}".removeprefix(".")
                found.add(whole if whole in SOURCES else base)
    return {name for name in found if name in SOURCES}


def room(module: str) -> str:
    """The line of the rule that a module belongs to."""
    folder, _, leaf = module.partition(".")
    if leaf == "__main__" or (not leaf and folder not in FOLDERS | VOCABULARY | {"config"}):
        return "commands"
    return "vocabulary" if folder in VOCABULARY else folder


def wrong_way(module: str, imported: str) -> bool:
    """Whether the rule forbids this import."""
    here, there = room(module), room(imported)
    if module in ONLY:
        return imported not in ONLY[module]
    allowed = there in RULE[here] | {here, "vocabulary"} or imported in ALSO.get(here, set())
    learner = {"methods.semopo", "methods.bc", "methods.drq", "methods.lompo", "methods.infogating"}
    return not allowed or {module, imported} <= learner


def test_every_folder_has_a_line_in_the_rule():
    assert FOLDERS | {"vocabulary", "config", "commands"} == set(RULE)
    assert {room(module) for module in SOURCES} == set(RULE)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_follow_the_rule(module):
    assert {name for name in ours(SOURCES[module]) if wrong_way(module, name)} == set()
    assert "a relative import" not in imports(SOURCES[module])


# One module of every folder: for each forbidden direction, one is the importer and one the imported.
EXAMPLE = {
    "vocabulary": "types",
    "storage": "storage.files",
    "nets": "nets.rssm",
    "config": "config",
    "data": "data.sampler",
    "methods": "methods.world_model",
    "envs": "envs.tasks",
    "engine": "engine.loop",
    "run": "run.trainer",
    "report": "report.page",
    "commands": "training",
}
FORBIDDEN = [
    (here, there)
    for here in RULE
    for there in RULE
    if here != there and there != "vocabulary" and there not in RULE[here]
]


@pytest.mark.parametrize(("here", "there"), FORBIDDEN)
def test_a_planted_import_in_a_forbidden_direction_is_found(here, there):
    package, _, name = f"semopo_tf.{EXAMPLE[there]}".rpartition(".")
    planted = ast.parse(f"def f():\n    from {package} import {name}")
    assert [name for name in ours(planted) if wrong_way(EXAMPLE[here], name)] == [EXAMPLE[there]]


def test_no_name_of_a_module_stands_twice():
    """A folder's `__main__` counts as the command that it is; library modules and commands have names of their own."""
    leaves = [module.split(".")[-1] for module in SOURCES if not module.endswith("__main__")]
    assert sorted(set(leaves)) == sorted(leaves)


def test_no_new_module_has_the_name_of_one_of_the_standard_library():
    """`types` and `random` keep the names by which other programs import them."""
    leaves = {module.split(".")[-1] for module in SOURCES} - {"__main__"}
    assert leaves & sys.stdlib_module_names == {"types", "random"}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_tensorflow_is_imported_where_something_is_computed_with_it(module):
    here = room(module)
    if here == "commands" or module in INSIDE_FUNCTIONS:
        assert imports(SOURCES[module], top_level_only=True) & TENSORFLOW == set()
        assert not imports(SOURCES[module]) & TENSORFLOW or module in COMMANDS_WITH_TENSORFLOW | INSIDE_FUNCTIONS
    elif here not in WITH_TENSORFLOW and module not in MODULES_WITH_TENSORFLOW:
        assert imports(SOURCES[module]) & TENSORFLOW == set()


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_simulators_are_imported_inside_functions_and_each_in_one_module(module):
    assert imports(SOURCES[module], top_level_only=True) & SIMULATORS == set()
    assert imports(SOURCES[module]) & SIMULATORS == SIMULATED.get(module, set())


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_libraries_of_clusters_are_imported_inside_functions_and_each_in_one_module(module):
    assert imports(SOURCES[module], top_level_only=True) & CLUSTERS == set()
    assert imports(SOURCES[module]) & CLUSTERS == CLUSTERED.get(module, set())


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_h5py_is_imported_inside_functions_and_in_one_module(module):
    assert imports(SOURCES[module], top_level_only=True) & {"h5py"} == set()
    assert imports(SOURCES[module]) & {"h5py"} == ({"h5py"} if module == "data.hdf5" else set())


def loaded_by(code: str, names: set[str]) -> set[str]:
    """Which of the named packages a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys\nprint(*sorted({names!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_data_records_and_environments_load_neither_tensorflow_nor_a_simulator():
    modules = [
        *("config", "checkpoint", "collect", "doctor", "training", "evaluation", "summary", "sweep", "data.__main__"),
        "run.worker",
        *("report.__main__", "run.checkpoints", "run.directory", "data.dataset", "envs.tasks", "envs.rollout"),
    ]
    code = "\n".join(f"import semopo_tf.{module}" for module in modules)
    assert loaded_by(code, TENSORFLOW | SIMULATORS | CLUSTERS) == set()


def test_a_wrong_flag_is_refused_before_tensorflow_is_loaded():
    code = (
        "from semopo_tf import training, errors\ntry: training.main(['--sed', '1'])\nexcept errors.ConfigError: "
        "pass\nelse: raise SystemExit(1)"
    )
    assert loaded_by(code, TENSORFLOW | SIMULATORS) == set()


def test_the_environment_of_tensorflow_is_set_by_importing_the_package():
    """TensorFlow reads both when it is imported, so they must be there before."""
    code = (
        "import os, sys\nimport semopo_tf\n"
        "assert os.environ['TF_ENABLE_ONEDNN_OPTS'] == '1' and 'TF_CPP_MIN_LOG_LEVEL' in os.environ"
    )
    assert loaded_by(code, TENSORFLOW) == set()


# --- no method is named where methods are run -------------------------------------------------------------------------

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
RUNNERS = FRONTS | {
    f"semopo_tf/{name}.py": PACKAGE / f"{name}.py"
    for name in ("training", "run/trainer", "evaluation", "engine/loop", "engine/compiling", "run/checkpoints")
}


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
    assert (
        methods_named(
            ast.parse("'''SeMOPO: semopo.'''\nraise E(f'{key}: e.g. --configs semopo walker_walk')\nimport semopo_tf")
        )
        == []
    )


@pytest.mark.parametrize("path", FRONTS.values(), ids=FRONTS)
def test_the_top_level_commands_are_fronts_of_five_lines(path):
    tree = ast.parse(path.read_text())
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.Match)]
    assert [ast.unparse(branch.test) for branch in branches] == ["__name__ == '__main__'"]
    assert len([line for line in path.read_text().splitlines() if line.strip()]) <= 5


# --- rules of the source ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"engine.compiling", "engine.loop"}))
def test_only_the_engine_compiles(module):
    said = [
        node.lineno
        for node in ast.walk(SOURCES[module])
        if isinstance(node, ast.keyword) and node.arg in ("jit_compile", "experimental_compile")
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
    caught = [
        (node.lineno, {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else broad)
        for node in handlers
    ]
    suppressed = [
        node
        for node in ast.walk(SOURCES[module])
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
    ]
    caught += [
        (node.lineno, {argument.id for argument in node.args if isinstance(argument, ast.Name)}) for node in suppressed
    ]
    assert [line for line, names in caught if names & broad] == []
