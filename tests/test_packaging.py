"""The wheel, its dependencies, and the commands and files around the package say the same thing."""

import ast
import email
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import semopo_tf
from semopo_tf import doctor
from semopo_tf.envs import rendering

ROOT = Path(__file__).parent.parent
# Declared, though no module imports them: tf-keras for TensorFlow Probability, mujoco for its bound.
NOT_IMPORTED = {"mujoco", "tf-keras"}
# Imported, though not declared: the user's choice, and what gym itself requires.
NOT_DECLARED = {"gymnasium", "gym-notices"}
# Imported where a user has asked for it: extra -> what the package imports of it.
OPTIONAL = {"ray": {"ray"}, "slurm": {"submitit"}}
# Used as programs, by the tests' own runner, by gym, or by the package.
TOOLS = {"mypy", "pytest-xdist", "ruff", "setuptools", "box2d", "pygame-ce", "ray", "submitit"}
TARGETS = ("demo", "test", "test-full", "format", "lint", "type", "docs", "doctor", "clean")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources, so that nothing a past build left behind gets in."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "configs.yaml", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "semopo_tf", tree / "semopo_tf", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        out,
        tree,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def requirements(metadata: Message, extra: str = "") -> list[Requirement]:
    """The run-time requirements, or those that `extra` adds."""
    every = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    return [
        r
        for r in every
        if (r.marker is None) == (extra == "") and (r.marker is None or r.marker.evaluate({"extra": extra}))
    ]


def names(found: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in found}


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def imported(paths: list[Path]) -> set[str]:
    """The distributions whose modules `paths` import, also inside functions and through `importlib.import_module`."""
    modules = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module or "")
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "importlib.import_module"
                and isinstance(node.args[0], ast.Constant)
            ):
                modules.add(node.args[0].value)
    tops = {module.split(".")[0] for module in modules}
    own = {"semopo_tf", "fake_simulation"} | {
        path.stem for path in paths
    }  # the second is written by tests/envs/test_suite.py
    providers = importlib.metadata.packages_distributions()
    return {
        canonicalize_name(name) for top in tops - own - sys.stdlib_module_names for name in providers.get(top, [top])
    }


def package_files() -> list[Path]:
    return [
        *sorted((ROOT / "semopo_tf").rglob("*.py")),
        *(path for path in sorted(ROOT.glob("*.py")) if path.name != "setup.py"),
    ]


def test_the_wheel_carries_every_module_and_the_real_configuration(wheel):
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "semopo_tf").rglob("*.py")}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "semopo_tf").rglob("*.yaml")}
    expected |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "semopo_tf").rglob("*.css")}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected
        assert archive.read("semopo_tf/configs.yaml") == (ROOT / "configs.yaml").read_bytes()
        assert any(name.endswith("/LICENSE") for name in archive.namelist())


def test_the_configuration_in_the_package_is_a_link():
    link = ROOT / "semopo_tf" / "configs.yaml"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "configs.yaml"


def test_the_version_stands_in_one_place(metadata):
    assert canonicalize_name(metadata["Name"]) == "semopo-tf"
    assert metadata["Version"] == semopo_tf.__version__
    holders = [
        path.name
        for path in (ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "Dockerfile")
        if semopo_tf.__version__ in path.read_text()
    ]
    assert not holders


def test_run_time_requirements_are_what_the_package_imports(metadata):
    declared, used = names(requirements(metadata)), imported(package_files())
    optional = set[str]().union(*OPTIONAL.values())
    assert used - declared - optional <= NOT_DECLARED, f"imported but not in setup.py: {sorted(used - declared)}"
    assert declared - used <= NOT_IMPORTED, f"in setup.py but never imported: {sorted(declared - used - NOT_IMPORTED)}"


def test_an_extra_of_an_executor_is_what_the_package_imports_for_it(metadata):
    assert {extra: names(requirements(metadata, extra)) for extra in OPTIONAL} == OPTIONAL
    assert set[str]().union(*OPTIONAL.values()) <= imported(package_files())


def test_development_requirements_are_what_the_tests_import(metadata):
    run_time, development = names(requirements(metadata)), names(requirements(metadata, "dev"))
    used = imported(sorted((ROOT / "tests").rglob("*.py"))) - run_time
    assert used <= development, f"imported by tests but not in the extra dev: {sorted(used - development)}"
    assert development - used <= TOOLS, f"in the extra dev but used nowhere: {sorted(development - used - TOOLS)}"


def test_every_requirement_is_bounded_above(metadata):
    open_ended = [
        r.name for r in requirements(metadata) if not any(part.operator in ("<", "==", "~=") for part in r.specifier)
    ]
    assert not open_ended


def test_constraints_satisfy_the_bounds(metadata):
    pinned = constraints()
    extras = [
        requirement for extra in ("dev", "gpu", "carracing", *OPTIONAL) for requirement in requirements(metadata, extra)
    ]
    for requirement in requirements(metadata) + extras:
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} does not accept the tested {version}"


def test_constraints_pin_everything_that_gets_installed(metadata):
    pinned, seen = constraints(), set()
    waiting = requirements(metadata) + requirements(metadata, "dev")
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        needed = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        waiting += [
            r
            for r in needed
            if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras})
        ]
    missing = {name for name, *_ in seen} - set(pinned)
    assert not missing, f"not in constraints.txt: {sorted(missing)}"


def test_car_racing_is_an_extra_of_wheels_and_never_the_one_of_gym(metadata):
    """gym[box2d] pins a pygame that does not build; its own requirements for Car Racing would go unmet otherwise."""
    assert names(requirements(metadata, "carracing")) == {"box2d", "pygame-ce"}
    (gym,) = (requirement for requirement in requirements(metadata) if requirement.name == "gym")
    assert not gym.extras and "gym[" not in (ROOT / "constraints.txt").read_text()


def test_the_doctor_checks_what_gets_installed(metadata):
    assert {canonicalize_name(name) for name in doctor.REQUIRED} <= names(requirements(metadata))
    supported = SpecifierSet(metadata["Requires-Python"])
    versions = [(3, minor) for minor in range(8, 20)]
    assert [v for v in versions if f"{v[0]}.{v[1]}" in supported] == [
        v for v in versions if doctor.PYTHON_FROM <= v < doctor.PYTHON_BELOW
    ]


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_the_system_packages_are_those_the_errors_name(file):
    assert rendering.INSTALL_GL.removeprefix("apt-get install ") in (ROOT / file).read_text()


class FakeMake:
    """Runs the real Makefile with a virtual environment whose python only notes its arguments."""

    def __init__(self, directory: Path):
        self.venv, self.calls = directory / "venv", directory / "calls"
        (self.venv / "bin").mkdir(parents=True)
        python = self.venv / "bin" / "python"
        python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>"{self.calls}"\nexit $FAKE_STATUS\n')
        python.chmod(0o755)
        (self.venv / "installed").touch()
        (self.venv / "renders").touch()

    def __call__(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess:
        # An outer `make test` hands its own flags down, which would replace these.
        clean = {
            key: value
            for key, value in os.environ.items()
            if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_ARGS")
        }
        command = ["make", "-C", str(ROOT), *arguments, f"VENV={self.venv}"]
        return subprocess.run(
            command, env=clean | {"FAKE_STATUS": str(status)}, capture_output=True, text=True, check=False
        )


@pytest.fixture
def make(tmp_path) -> FakeMake:
    return FakeMake(tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_the_makefile_has_the_target(make, target):
    result = make("--dry-run", target)
    assert result.returncode == 0, result.stderr
    assert target in re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()


def test_make_test_runs_the_suite_and_installs_nothing_twice(make):
    assert make("test", "PYTEST_ARGS=-x tests/test_data.py").returncode == 0
    assert make.calls.read_text().splitlines() == ["-m pytest -m not full -x tests/test_data.py"]


def test_make_test_full_leaves_no_test_out(make):
    assert make("test-full").returncode == 0
    assert make.calls.read_text().splitlines() == ["-m pytest -n 2 --dist loadfile --no-loadscope-reorder"]


@pytest.mark.parametrize("status", [1, 5])
def test_make_test_fails_with_pytest(make, status):
    """Status 5 is pytest's for a run without tests."""
    assert make("test", status=status).returncode != 0


def test_a_new_constraint_is_installed(make):
    os.utime(make.venv / "installed", (0, 0))
    assert "pip install" in make("--dry-run", "test").stdout


def test_continuous_integration_runs_lint_types_and_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make ")] == ["make lint type", "make test"]


def test_the_readme_names_the_commands():
    text = (ROOT / "README.md").read_text()
    assert "make test" in text
    assert "make demo" in text


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's (instruction, arguments), continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_installs_the_tested_set_with_cuda():
    runs = [arguments for name, arguments in instructions() if name == "RUN"]
    installs = [command for run in runs for command in run.split("&&") if "pip install" in command]
    assert all("--constraint constraints.txt" in command for command in installs)
    assert any("[gpu]" in command for command in installs)


def test_the_image_runs_as_an_ordinary_user_with_volumes_for_data_and_runs():
    listed = instructions()
    (user,) = (arguments for name, arguments in listed if name == "USER")
    assert user not in ("root", "0")
    assert all(name != "RUN" for name, _ in listed[[name for name, _ in listed].index("USER") :])
    (volumes,) = (json.loads(arguments) for name, arguments in listed if name == "VOLUME")
    assert volumes == ["/data", "/runs"]


def test_the_image_leaves_the_choice_of_the_renderer_to_the_probe():
    assert "MUJOCO_GL" not in (ROOT / "Dockerfile").read_text()
    assert any(name == "ENV" and "graphics" in arguments for name, arguments in instructions())


@pytest.mark.parametrize("command", [["say.py", "a b"], ["python", "say.py", "a b"]])
def test_the_image_starts_scripts_and_programs(tmp_path, command):
    (tmp_path / "say.py").write_text("import sys\nprint(sys.argv)\n")
    (entry,) = (json.loads(arguments) for name, arguments in instructions() if name == "ENTRYPOINT")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [*entry, *command], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert result.stdout == "['say.py', 'a b']\n"
