"""What the package never does, checked on its source, and what a command never does, checked on a run."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic

import semopo_tf

PACKAGE = Path(semopo_tf.__file__).parent
ROOT = PACKAGE.parent
SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")]
    if path.name != "setup.py"
}

# Modules that run code while they read, unpack archives, or reach the network; with the files that may use them for
# something else.
BANNED_MODULES = {
    **dict.fromkeys(
        ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"), ()
    ),
    **dict.fromkeys(
        (
            "tarfile",
            "yaml",
            "requests",
            "urllib",
            "urllib3",
            "http",
            "ftplib",
            "smtplib",
            "telnetlib",
            "xmlrpc",
            "wget",
            "gdown",
        ),
        (),
    ),
    "zipfile": ("semopo_tf/storage/npz.py",),  # members of arrays, in memory
    # To a child or a thread; the host's name; to the cluster named on the command line.
    "socket": (
        *(f"semopo_tf/storage/{name}.py" for name in ("child", "files")),
        *(f"semopo_tf/run/{name}.py" for name in ("stopping", "views", "worker", "executors/ray_tasks")),
    ),
}
# Called under any of these names, however they were imported.
BANNED_CALLS = {
    *(
        "eval",
        "exec",
        "__import__",
        "extractall",
        "unpack_archive",
        "get_file",
        "load_model",
        "model_from_json",
        "load_weights",
    ),
    *(
        "full_load",
        "unsafe_load",
        "load_all",
        "expandvars",
        "urlopen",
        "urlretrieve",
        "create_connection",
        "py_function",
    ),
}
# Called under exactly this name; a method `compile` is none of them.
BANNED_NAMES = {"os.system", "os.popen", "yaml.load", "tf.saved_model.load", "compile", "builtins.compile"}
NUMPY_READERS = {"load", "fromfile", "memmap", "open_memmap", "loadtxt", "genfromtxt", "read_array", "DataSource"}
NUMPY_ALLOWED = {
    "semopo_tf/data/dataset.py": {"memmap"},  # of the cache's frames, after their header
}
NAMES_ALLOWED = {
    "semopo_tf/run/players.py": {"tf.saved_model.load"},  # of an export named on the command line
    "semopo_tf/run/executors/ray_tasks.py": {"socket.create_connection"},  # closed at once: does the cluster answer?
}
IMPORTS_BY_NAME = {
    "semopo_tf/__init__.py",  # modules of the package
    "semopo_tf/doctor.py",  # names written there
    "semopo_tf/envs/tasks.py",  # a task named on the command line
}


def modules(tree: ast.AST) -> set[str]:
    """First part of the name of every imported module."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """(whole name, node) of every call with a name, e.g. `np.load`."""
    found = [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(name, node) for name, node in found if re.fullmatch(r"[\w.]+", name)]


def never(path: str, tree: ast.AST) -> list[str]:
    """What of the list a source does, `line: what`."""
    found = [f"imports {name}" for name in modules(tree) if name in BANNED_MODULES and path not in BANNED_MODULES[name]]
    for name, node in calls(tree):
        first, last = name.split(".")[0], name.split(".")[-1]
        where = f"{node.lineno}: {name}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (last in BANNED_CALLS or name in BANNED_NAMES) and name not in NAMES_ALLOWED.get(path, set()):
            found.append(where)
        if first in ("np", "numpy") and last in NUMPY_READERS - NUMPY_ALLOWED.get(path, set()):
            found.append(where)
        if last == "import_module" and path not in IMPORTS_BY_NAME:
            found.append(where)
        if keywords.get("allow_pickle", "False") != "False" or keywords.get("shell", "False") != "False":
            found.append(f"{where} with {keywords}")
        if last == "YAML" and (keywords.get("typ"), keywords.get("pure")) != ("'safe'", "True"):
            found.append(f"{where} with {keywords}")
        if (
            last == "compile"
            and name == "re.compile"
            and not all(isinstance(argument, ast.Constant | ast.Attribute) for argument in node.args)
        ):
            found.append(f"{where} of something else than a literal")
    return found


@pytest.mark.parametrize("path", sorted(SOURCES))
def test_the_source_does_nothing_of_the_never_list(path):
    assert never(path, SOURCES[path]) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "import shelve as s",
        "import marshal",
        "import joblib",
        "import zipfile",
        "import urllib.request",
        "import socket",
        "np.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "f(allow_pickle=flag)",
        "np.fromfile(path)",
        "np.memmap(path)",
        "yaml.load(text)",
        "YAML()",
        "YAML(typ='unsafe')",
        "YAML(typ='safe')",
        "eval(text)",
        "exec(text)",
        "builtins.exec(text)",
        "archive.extractall(path)",
        "shutil.unpack_archive(path)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "os.popen(command)",
        "keras.models.load_model(path)",
        "tf.saved_model.load(path)",
        "model.load_weights(path)",
        "importlib.import_module(name)",
        "re.compile(key)",
        "re.compile(f'{key}')",
        "os.path.expandvars(path)",
        "socket.create_connection(address)",
    ],
)
def test_the_list_finds_what_it_looks_for(line):
    assert never("semopo_tf/other.py", ast.parse(line)) != []


def test_the_list_allows_what_is_safe():
    text = (
        "re.compile('a')\nYAML(typ='safe', pure=True)\nnp.save(path, array)\nrun(command, "
        "shell=False)\nf(allow_pickle=False)\nx.load(path)"
    )
    assert never("semopo_tf/other.py", ast.parse(text)) == []


BLOCKED = """
import socket, sys
real = socket.socket
class Local(real):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            sys.stderr.write(f"NETWORK {address}"); sys.stderr.flush()
            raise OSError("no network in this test")
        return super().connect(address)
    connect_ex = connect
def lookup(*words, **more):
    sys.stderr.write(f"NETWORK {words}"); sys.stderr.flush()
    raise OSError("no network in this test")
socket.socket, socket.getaddrinfo, socket.create_connection = Local, lookup, lookup
from semopo_tf.training import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_training_command_reaches_for_no_network_and_records_no_secret(tmp_path):
    flags = synthetic.train_flags(
        synthetic.dataset(tmp_path / "data"), tmp_path / "run", "--steps.model", "1", "--steps.policy", "1"
    )
    secret = "a-token-of-the-environment"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *flags],
        cwd=ROOT,
        env=os.environ | {"API_TOKEN": secret},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NETWORK" not in done.stderr
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written and not [path for path in written if secret.encode() in path.read_bytes()]
    assert secret not in done.stdout + done.stderr
