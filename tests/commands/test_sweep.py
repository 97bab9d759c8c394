"""Sweeps: the meaning of a page, what is refused, and a real sweep of two runs, one of which fails and is continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from semopo_tf import evaluation, summary, sweep
from semopo_tf.errors import ConfigError, SweepError
from semopo_tf.run import pages
from semopo_tf.storage.records import read_records

ROOT = Path(sweep.__file__).parents[1]
PAGE = """
out: {out}
processes: 2
data:
  random: [--task, exbmdp_point, --policy, random, --episodes, 3]
runs:
  - name: semopo
    data: random
    flags: [--configs, semopo, exbmdp_point, debug, --eval.final_episodes, 2]
    grid: {{seed: [1, 2]}}
    probe: true
"""


def write(tmp_path, text=PAGE):
    path = tmp_path / "sweep.yaml"
    path.write_text(text.format(out=tmp_path / "out"))
    return path


def test_a_page_is_one_run_for_each_combination(tmp_path):
    text = PAGE.replace("seed: [1, 2]", "seed: [1, 2], penalty.weight: [0.0, 0.3, 1.0]")
    found = pages.read_sweep(write(tmp_path, text))
    assert found["collections"] == {
        tmp_path / "out/data/random": ["--task", "exbmdp_point", "--policy", "random", "--episodes", "3"]
    }
    assert [row.name for row in found["rows"]][:2] == [
        "semopo/seed=1,penalty.weight=0.0",
        "semopo/seed=1,penalty.weight=0.3",
    ]
    assert len(found["rows"]) == 6
    train, probe = (command.words for command in found["rows"][5].commands)
    assert train[0] == "training" and probe[0] == "probe"
    assert train[train.index("--penalty.weight") + 1] == "1.0" and train[train.index("--seed") + 1] == "2"
    assert train[train.index("--offline_dir") + 1] == str(tmp_path / "out/data/random")
    assert train[train.index("--logdir") + 1] == str(found["rows"][5].logdir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("processes: 2", "proceses: 2"), "unknown key 'proceses'"),
        (("probe: true", "probes: true"), "run semopo: unknown key 'probes'"),
        (("    data: random\n", ""), "expected name, data and flags in every run"),
        (("seed: [1, 2]", "seed: [1, 1]"), "two runs are called semopo/seed=1"),
        (("seed: [1, 2]", "sed: [1, 2]"), "sed"),
        (("out: {out}\n", ""), "expected `out`"),
    ],
)
def test_a_wrong_page_is_refused_before_anything_is_started(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        sweep.main(["--file", str(write(tmp_path, PAGE.replace(*change)))])
    assert not (tmp_path / "out").exists()


LISTED = "data:\n  random: [--task, exbmdp_point, --policy, random, --episodes, 3]"
GRID = "grid: {{seed: [1, 2]}}"
WORDS = r"expected a list of words and numbers, received"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("out: {out}", "out: 3"), r": out: expected a text, received 3"),
        (("out: {out}", "out: ''"), r": out: expected a text, received ''"),
        (("processes: 2", "processes: two"), r": processes: expected a whole number of at least 1, received 'two'"),
        (("processes: 2", "processes: 0"), r": processes: .* received 0"),
        (("processes: 2", "processes: 1.5"), r": processes: .* received 1.5"),
        (("processes: 2", "processes: true"), r": processes: .* received True"),
        (("processes: 2", "flags: {{}}"), rf": flags: {WORDS} {{}}"),
        (("processes: 2", "flags: --eval.every"), rf": flags: {WORDS} '--eval.every'"),
        (("processes: 2", "flags: [[--eval.every, 7]]"), rf": flags: {WORDS} \[\['--eval.every', 7\]\]"),
        (("processes: 2", "flags: [--eval.every, null]"), rf": flags: {WORDS} \['--eval.every', None\]"),
        ((LISTED, "data: []"), r": data: expected a mapping of names, none absolute or with .., received \[\]"),
        ((LISTED, "data: {{1: [--task, exbmdp_point]}}"), r": data: expected a mapping of names"),
        ((LISTED, "data: {{../random: [--task, exbmdp_point]}}"), r": data: expected a mapping of names"),
        ((LISTED, "data: {{random: exbmdp_point}}"), rf": data: random: {WORDS} 'exbmdp_point'"),
        ((PAGE[PAGE.index("runs:") :], "runs: semopo\n"), r": runs: expected a list, received 'semopo'"),
        (
            (PAGE[PAGE.index("runs:") :], "runs: [semopo]\n"),
            r": runs: run 1: expected a mapping of names, .* received 'semopo'",
        ),
        (("name: semopo", "name: 3"), r": run 3: name: expected a name below `out`, .* received 3"),
        (("name: semopo", "name: /semopo"), r": run /semopo: name: expected a name below `out`"),
        (("name: semopo", "name: ../semopo"), r": run ../semopo: name: expected a name below `out`"),
        (("    data: random", "    data: [random]"), r": run semopo: data: expected a text, received \['random'\]"),
        (("    flags: [--configs, semopo,", "    flags: [{{}},"), rf": run semopo: flags: {WORDS} \[{{}}, "),
        ((GRID, "grid: 3"), r": run semopo: grid: expected a mapping of names, .* received 3"),
        (
            (GRID, "grid: {{seed: 12}}"),
            r": run semopo: grid: seed: expected a list of at least one word or number, received 12",
        ),
        ((GRID, "grid: {{seed: '12'}}"), r": run semopo: grid: seed: .* received '12'"),
        ((GRID, "grid: {{seed: []}}"), r": run semopo: grid: seed: .* received \[\]"),
        ((GRID, "grid: {{seed: [[1]]}}"), r": run semopo: grid: seed: .* received \[\[1\]\]"),
        (("probe: true", "probe: maybe"), r": run semopo: probe: expected true or false, received 'maybe'"),
        (("probe: true", "probe: 1"), r": run semopo: probe: expected true or false, received 1"),
        (
            ("probe: true", "each: {{method: semopo}}"),
            r": run semopo: each: method: expected a list of at least one word",
        ),
        (("probe: true", "evaluate: true"), r": run semopo: evaluate: expected a mapping of names, .* received True"),
        (("probe: true", "evaluate: {{rgb: rgb}}"), rf": run semopo: evaluate: rgb: {WORDS} 'rgb'"),
        (("processes: 2", "3: x\nfour: x"), r"unknown key 3; expected some of"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_key(tmp_path, change, message):
    changed = PAGE.replace(*change)
    assert changed != PAGE
    with pytest.raises(ConfigError, match=rf"sweep.yaml{message}" if message.startswith(":") else message) as caught:
        sweep.main(["--file", str(write(tmp_path, changed))])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_number_of_processes_below_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--processes: expected at least 1, received 0"):
        sweep.main(["--file", str(write(tmp_path)), "--processes", "0"])


def test_the_pages_flags_are_every_runs_and_a_flag_may_name_a_value_of_the_grid(tmp_path):
    text = "flags: [--eval.every, 7]\n" + PAGE.replace("debug,", 'debug, --world_model, "other/seed={{seed}}",')
    found = pages.read_sweep(write(tmp_path, text))
    words = found["rows"][1].commands[0].words
    assert words[words.index("--world_model") + 1] == "other/seed=2"
    train = found["rows"][0].commands[0].words
    assert train[1:4] == ("--eval.every", "7", "--configs")


def test_a_row_goes_on_with_the_first_command_that_has_not_left_its_files(tmp_path):
    found = pages.read_sweep(write(tmp_path, PAGE.replace("probe: true", "probe: true\n    analyses: true")))
    row = found["rows"][0]
    (row.logdir / "analysis").mkdir(parents=True)

    def after(*files):
        for name in files:
            (row.logdir / name).touch()
        return [command.words[0] for command in row.left]

    assert after() == ["training", "probe", "analysis"]
    assert after("DONE", "analysis/uncertainty.json") == ["probe", "analysis"] and not row.done
    assert after("analysis/probe.json") == ["analysis"]
    assert after("analysis/reconstruction.json", "analysis/entropy.json") == [] and row.done
    assert row.commands[2].words[1:] == ("--logdir", str(row.logdir))


def test_joined_data_are_made_after_their_parts(tmp_path):
    text = PAGE.replace("runs:", "  two: [--task, exbmdp_point, --episodes, 1]\njoined: {{both: [two, random]}}\nruns:")
    text = text.replace("data: random", "data: both")
    found = pages.read_sweep(write(tmp_path, text))
    data = tmp_path / "out" / "data"
    assert found["rows"][0].data == data / "both"
    plan = sweep.commands_of(found, {data / "both"}, 1)
    assert [words[0] for words in plan] == ["semopo_tf.collect", "semopo_tf.collect", "semopo_tf.data"]
    assert plan[-1][1:] == ["join", str(data / "two"), str(data / "random"), str(data / "both")]
    assert [words[-1] for words in sweep.commands_of(found, {data / "random"}, 1)] == [str(data / "random")]
    sweep.prepare(plan[0]), sweep.prepare(plan[1]), sweep.prepare(plan[2])
    assert len(list((data / "both").glob("*.npz"))) == 4
    for wrong, message in (("[two, tow]", "both: expected names of data"), ("[two]", "a list of at least two names")):
        with pytest.raises(ConfigError, match=message):
            pages.read_sweep(write(tmp_path, text.replace("[two, random]", wrong)))


def test_a_row_may_name_its_analyses(tmp_path):
    text = PAGE.replace("probe: true", "analyses: [trust, bound]")
    command = pages.read_sweep(write(tmp_path, text))["rows"][0].commands[1]
    assert command.leaves == ("analysis/trust.json", "analysis/bound.json")
    assert command.words[3:] == ("--only", "trust", "bound", "--task", "exbmdp_point")
    with pytest.raises(ConfigError, match=r"analyses: expected true, false or a list of uncertainty, .*, received"):
        pages.read_sweep(write(tmp_path, text.replace("bound", "bond")))


EACH = """
out: {out}
runs:
  - name: '{{task}}/{{method}}'
    data: other/{{task}}
    flags: [--configs, '{{method}}', '{{task}}', debug]
    each: {{task: [exbmdp_point, exbmdp_hard], method: [semopo, bc]}}
    grid: {{seed: [1, 2]}}
    evaluate: {{first: [--episodes, 1], '{{method}}_two': [--episodes, 2]}}
"""


def test_an_entry_with_each_is_one_entry_for_each_combination(tmp_path):
    rows = pages.read_sweep(write(tmp_path, EACH))["rows"]
    names = [
        f"exbmdp_{task}/{method}/seed={s}" for task in ("point", "hard") for method in ("semopo", "bc") for s in (1, 2)
    ]
    assert [row.name for row in rows] == names
    assert [row.position for row in rows] == [0, 1] * 4  # the first seed of all, then the second
    train = rows[7].commands[0].words
    assert train[train.index("--configs") + 1 :][:3] == ("bc", "exbmdp_hard", "debug")
    assert train[train.index("--offline_dir") + 1] == "other/exbmdp_hard"


def test_every_evaluation_is_a_command_that_is_done_once_its_summary_is_there(tmp_path):
    row = pages.read_sweep(write(tmp_path, EACH))["rows"][0]
    assert [command.leaves for command in row.commands] == [
        ("DONE",),
        ("evaluations/first.json",),
        ("evaluations/{method}_two.json",),  # a name of an evaluation stays as it is
    ]
    words = row.commands[1].words
    assert words[:5] == ("evaluation", "--logdir", str(row.logdir), "--episodes", "1")
    assert words[words.index("--summary") + 1] == str(row.logdir / "evaluations/first.json")
    assert evaluation.parse(list(words[1:])).episodes == 1
    (row.logdir / "evaluations").mkdir(parents=True)
    for name in ("DONE", "evaluations/first.json"):
        (row.logdir / name).touch()
    assert [command.words[4] for command in row.left] == ["2"]


def test_list_prints_the_commands_that_are_left(tmp_path, capsys):
    file = write(tmp_path, EACH)
    (tmp_path / "out/exbmdp_point/semopo/seed=1").mkdir(parents=True)
    (tmp_path / "out/exbmdp_point/semopo/seed=1/DONE").touch()
    assert sweep.main(["--file", str(file), "--only", "exbmdp_point/semopo", "--list"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python -m ")]
    kinds = [line.split()[2].removeprefix("semopo_tf.") for line in commands]
    assert kinds == ["evaluation", "evaluation", "training", "evaluation", "evaluation"]
    assert f"--logdir {tmp_path}/out/exbmdp_point/semopo/seed=2" in commands[2]


@pytest.mark.full
def test_a_sweep_runs_the_analyses(tmp_path):
    path = write(tmp_path, PAGE.replace("probe: true", "analyses: true").replace("[1, 2]", "[1]"))
    assert sweep.main(["--file", str(path)]) == 0
    assert len(list((tmp_path / "out/semopo/seed=1/analysis").iterdir())) == 5  # three records, two pictures


def test_a_sweep_runs_what_is_left_and_says_what_failed(tmp_path, capsys):
    spare = "  spare: [--task, exbmdp_point, --policy, expert, --episodes, 1]\nruns:"
    text = PAGE.replace("runs:", spare) + "    evaluate: {{more: [--episodes, 3]}}\n"
    path, out = write(tmp_path, text), tmp_path / "out"
    broken = out / "semopo" / "seed=2"
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text(
        "no: configuration\n"
    )  # a stranger's file: this run must fail and the other must not
    with pytest.raises(SweepError, match=r"1 of 2 runs are not done: semopo/seed=2 \(refused, exit code 2\)"):
        sweep.main(["--file", str(path)])
    assert (out / "semopo/seed=1/DONE").exists() and (out / "semopo/seed=1/analysis/probe.json").exists()
    played = json.loads((out / "semopo/seed=1/evaluations/more.json").read_text())
    scores = read_records(out / "semopo/seed=1/scores.jsonl")
    assert [row["source"] for row in scores] == ["train"] * 2 + ["evaluate"] * 3
    assert played["episodes"] == 3 and played["mean"] == pytest.approx(np.mean([row["return"] for row in scores[2:]]))
    assert played["environment"] == scores[-1]["environment"]
    assert "configuration" in (broken / "log.txt").read_text()
    assert len(list((out / "data/spare").glob("*.npz"))) == 1  # though no run learns from it
    (broken / "config.yaml").unlink()
    before = (out / "semopo/seed=1/log.txt").read_bytes()
    assert sweep.main(["--file", str(path)]) == 0
    assert (out / "semopo/seed=1/log.txt").read_bytes() == before
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].split()[:4] == ["semopo/seed=2", "done", "policy", "12"]
    assert json.loads((broken / "minutes.json").read_text()) > 0
    assert sweep.main(["--file", str(path), "--list"]) == 0
    assert capsys.readouterr().out.count(" done ") == 2

    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- table semopo -->\nold\n<!-- end -->\nafter\n")
    assert summary.main(["--file", str(path), "--page", str(page)]) == 0
    written = page.read_text()
    returns = [
        np.mean([row["return"] for row in read_records(out / f"semopo/seed={seed}/scores.jsonl")[2:]])
        for seed in (1, 2)
    ]
    half = 12.7062 * np.std(returns, ddof=1) / np.sqrt(2)  # Student's t of one degree of freedom, 97.5 %
    line = f"| semopo | 2 | {np.mean(returns):.1f} ± {half:.1f} | {returns[0]:.1f}, {returns[1]:.1f} |"
    assert line in written and "old" not in written
    assert written.startswith("Before\n<!-- table semopo -->\n| run |") and written.endswith("<!-- end -->\nafter\n")
    assert "Data `random`: random behaviour, 3 episodes" in written
    assert summary.main(["--file", str(path), "--page", str(page)]) == 0
    assert page.read_text() == written
    shutil.move(out / "semopo", tmp_path / "elsewhere")
    assert summary.main(["--file", str(path), "--page", str(page)]) == 0
    assert page.read_text() == written
    page.write_text("<!-- table semopo -->\n<!-- end -->\n")
    assert summary.main(["--file", str(path), "--page", str(page)]) == 0
    assert "Not run: semopo." in page.read_text()
    page.write_text(written.replace("table semopo", "table semop"))
    with pytest.raises(ConfigError, match="<!-- table semop -->: expected the beginning of a run's name"):
        summary.main(["--file", str(path), "--page", str(page)])


@pytest.mark.full
def test_R07_a_terminated_sweep_ends_its_runs_saved_and_counts_them_as_stopped(tmp_path, capsys):
    text = PAGE.replace("debug,", "debug, --steps.model, 100000, --save_every, 100000,")
    path, out = write(tmp_path, text), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "semopo_tf.sweep", "--file", str(path)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    runs = [out / "semopo" / f"seed={seed}" for seed in (1, 2)]
    deadline = time.monotonic() + 300
    while not all((run / "metrics.jsonl").exists() for run in runs) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    for run in runs:
        assert "semopo_tf: stopped by SIGTERM at model update" in (run / "log.txt").read_text()
        assert list(run.glob("ckpt-model-*"))
        assert not (run / "DONE").exists()
    assert sweep.main(["--file", str(path), "--list"]) == 0
    assert capsys.readouterr().out.count(" stopped ") == 2


@pytest.mark.full
def test_cancel_ends_running_runs_saved_begins_no_other_and_the_same_command_goes_on(tmp_path, capsys):
    text = PAGE.replace("debug,", "debug, --steps.model, 100000,").replace("    probe: true\n", "")
    path, out = write(tmp_path, text), tmp_path / "out"
    command = [sys.executable, "-m", "semopo_tf.sweep", "--file", str(path), "--processes", "1"]

    def started() -> subprocess.Popen:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def wait_for_rows(number: int) -> None:
        deadline = time.monotonic() + 300
        while len(read_records(out / "semopo/seed=1/metrics.jsonl")) < number and time.monotonic() < deadline:
            time.sleep(0.2)

    process = started()
    wait_for_rows(2)
    assert sweep.main(["cancel", "--file", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "waiting for 1 runs that save and end, semopo/seed=1 first" in printed
    assert printed.endswith("2 runs: 2 cancelled\n")
    _, said = process.communicate(timeout=60)
    assert process.returncode == SweepError.exit_code
    assert "2 of 2 runs are not done: semopo/seed=1 (cancelled), semopo/seed=2 (cancelled)" in said
    log = out / "semopo/seed=1/log.txt"
    assert "semopo_tf: stopped by SIGTERM at model update" in log.read_text()
    assert not (out / "semopo/seed=2").exists()

    rows = len(read_records(out / "semopo/seed=1/metrics.jsonl"))
    process = started()
    wait_for_rows(rows + 2)  # it resumes
    assert sweep.main(["status", "--file", str(path)]) == 0
    assert capsys.readouterr().out.endswith("2 runs: 1 running, 1 waiting\n")
    assert sweep.main(["cancel", "--file", str(path), "--only", "semopo/seed=1"]) == 0
    capsys.readouterr()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    sweep.main(["status", "--file", str(path)])
    assert "1 cancelled" in capsys.readouterr().out


@pytest.mark.full
def test_a_run_that_cannot_be_written_is_not_retried_and_the_same_command_goes_on(tmp_path, capsys):
    """The shell's limit on the size of files refuses the first checkpoint, as a full disk does."""
    path, out = write(tmp_path, PAGE.replace("[1, 2]", "[1]").replace("    probe: true\n", "")), tmp_path / "out"
    assert sweep.main(["--file", str(path), "--only", "no run"]) == 0  # the data
    command = f"ulimit -f 200; exec {sys.executable} -m semopo_tf.sweep --file {path} --only semopo"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == SweepError.exit_code
    assert "1 of 1 runs are not done: semopo/seed=1 (no storage, exit code 7)" in done.stderr
    assert "retry" not in done.stdout and "storage error (exit 7)" in (out / "semopo/seed=1/log.txt").read_text()
    capsys.readouterr()
    assert sweep.main(["--file", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[-2:] == ["2", "0"]  # the second start


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--executor", "grid"], "--executor: invalid choice"),
        (["--retries", "-1"], "--retries: expected at least 0, received -1"),
        (["--gpus_per_run", "1"], "--gpus_per_run: expected --executor ray or slurm with it, received local"),
        (["--address", "auto"], "--address: expected --executor ray with it, received local"),
        (["--executor", "ray", "--slurm", "time=5"], "--slurm: expected --executor slurm with it, received ray"),
        (["--executor", "slurm"], "--slurm: expected time=MINUTES"),
        (["--executor", "slurm", "--slurm", "time=1:00"], "--slurm time: expected a whole number of minutes"),
        (["--executor", "slurm", "--slurm", "time=1", "cpus_per_task=2"], "cpus_per_task: expected --cpus_per_run"),
        (["--executor", "slurm", "--slurm", "cluster=pbs"], "--slurm cluster: expected one of slurm, local"),
        (
            ["--executor", "slurm", "--slurm", "time=5", "--gpus_per_run", "0.5"],
            "--gpus_per_run: expected whole GPUs with slurm, received 0.5",
        ),
        (["stop"], "action: invalid choice: 'stop'"),
    ],
)
def test_a_flag_of_an_executor_is_refused_before_anything_starts(tmp_path, flags, message):
    with pytest.raises(ConfigError, match=message):
        sweep.main([*flags, "--file", str(write(tmp_path))])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_one_line_with_its_extra(tmp_path, monkeypatch, executor, package):
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    parameters = ["--slurm", "time=5"] if executor == "slurm" else []
    with pytest.raises(ConfigError, match=rf"expected the package {package}.*; pip install semopo_tf\[{executor}\]"):
        sweep.main(["--file", str(write(tmp_path)), "--executor", executor, *parameters])


def test_slurm_without_slurm_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"expected the programs of SLURM \(sbatch, srun\), received none"):
        sweep.main(["--file", str(write(tmp_path)), "--executor", "slurm", "--slurm", "time=5"])


def test_intervals_are_students_and_welchs():
    assert summary.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 2.7764 * np.sqrt(2.5 / 5)), rel=1e-4)
    assert (
        summary.interval([4.0])[0] == 4.0 and np.isnan(summary.interval([4.0])[1]) and np.isnan(summary.interval([])[0])
    )
    # Variances 2.5 and 10, five each: 5.882 degrees of freedom, t = 2.459.
    assert summary.difference([1.0, 2, 3, 4, 5], [2.0, 4, 6, 8, 10]) == pytest.approx(
        (-3.0, 2.4590 * np.sqrt(2.5)), rel=1e-3
    )


def test_a_page_of_data_alone_trains_the_behaviours_that_play_them_and_goes_on(tmp_path, capsys):
    page = {
        "out": str(tmp_path / "lqv"),
        "variables": {"episodes": 2},
        "behaviours": {
            "tiny": [
                *("--task", "exbmdp_point", "--env.action_repeat", 1, "--online.episodes", 3, "--online.updates", 2),
                *("--actor.units", 4, "--critic.units", 4, "--batch.size", 4, "--jit", "off"),
            ],
            "unused": ["--task", "walker_walk"],
        },
        "data": {
            "point/random": ["--task", "exbmdp_point", "--episodes", "{episodes}"],
            "point/medrep": ["--task", "exbmdp_point", "--level", "medrep", "--behaviour", "{tiny}", "--episodes", 2],
        },
    }
    file = tmp_path / "page.yaml"
    file.write_text(json.dumps(page))
    sweep.main(["--file", str(file), "--list"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in listed[:3]] == ["semopo_tf.behave", *["semopo_tf.collect"] * 2]
    assert not any("unused" in line for line in listed)
    assert sweep.main(["--file", str(file), "--only", "point/random", "--set", "episodes=1"]) == 0
    assert len(list((tmp_path / "lqv/data/point/random").glob("*.npz"))) == 1
    assert not (tmp_path / "lqv/behaviours").exists()  # `random` needs none
    assert sweep.main(["--file", str(file)]) == 0
    assert len(list((tmp_path / "lqv/data/point/random").glob("*.npz"))) == 2  # the one that was there is kept
    assert len(list((tmp_path / "lqv/data/point/medrep").glob("*.npz"))) == 2
    with pytest.raises(ConfigError, match="--set episode: expected one of episodes"):
        sweep.main(["--file", str(file), "--set", "episode=1"])


def test_a_behaviour_that_fails_ends_the_sweep_in_one_line(tmp_path):
    file = tmp_path / "page.yaml"
    data = {"point": ["--task", "exbmdp_point", "--level", "medrep", "--behaviour", "{bad}", "--returns", "all"]}
    file.write_text(json.dumps({"out": str(tmp_path / "o"), "behaviours": {"bad": ["--sed", 1]}, "data": data}))
    with pytest.raises(SweepError, match=r"behave train --sed 1 .*: expected exit status 0, received 2"):
        sweep.main(["--file", str(file)])
