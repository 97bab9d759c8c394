"""`evaluate.py`: play a run's policy in the simulator, append a row per episode to scores.jsonl, and write videos.

All is written into the run's directory, or with `--out` into another one, as for a run that may only be read.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semopo_tf import config as configuration
from semopo_tf.errors import run_command
from semopo_tf.report import paper
from semopo_tf.run.directory import require_growing, require_writable
from semopo_tf.run.trained import TASK_HELP, Run, as_batch, load_run, require_named, run_parser, scored
from semopo_tf.storage.files import write_whole
from semopo_tf.storage.records import Records
from semopo_tf.storage.video import video_grid, write_video
from semopo_tf.types import Episode

SCORES, VIDEOS = "scores.jsonl", "videos"
VIDEO_EPISODES, VIDEO_LENGTH, VIDEO_CONTEXT = 3, 100, 5


def main(argv: list[str]) -> int:
    """Evaluate a run.

    Raises:
      SemopoError: any of `errors`, each with its exit code.
    """
    arguments = parse(argv)
    logdir = arguments.logdir
    out = arguments.out or logdir
    run = load_run(logdir, arguments.checkpoint)
    from semopo_tf.run import build  # imports TensorFlow: only after the arguments are checked

    require_named(run.config.task, arguments.task)
    if not arguments.checkpoint and not (logdir / "DONE").exists():
        print(f"warning: {logdir}: the run is not complete; playing {run.checkpoint}")
    look(out, video=arguments.video)
    if arguments.summary:
        require_writable(arguments.summary.parent, "the directory of --summary", "name another file")
    overrides = {
        key: value for key in (*build.CARD_KEYS, *build.USUAL) if (value := getattr(arguments, key)) is not None
    }
    scores, rows, filmed = Records(out / SCORES), [], list[Episode]()
    for row, episode in scored(run, arguments.episodes, arguments.environments, overrides):
        scores.append(row)
        rows.append(row)
        if arguments.video and len(filmed) < VIDEO_EPISODES:
            filmed.append(episode)
        print(f"episode {row['episode_seed']}: return {row['return']:.1f}, {row['length']} decisions", flush=True)
    print(f"{run.checkpoint}: {summary(rows)}")
    for path in write_videos(out / VIDEOS, run, filmed) if filmed else ():
        print(f"video: {path}")
    if arguments.summary:
        write_whole(arguments.summary, json.dumps(summary_record(rows), indent=1).encode())
    return 0


def look(out: Path, *, video: bool) -> None:
    """Raises StorageError now, before an hour of playing, when the results cannot be written into a directory."""
    remedy = "name a directory for the results with --out"
    require_writable(out, "the directory of the results", remedy)
    require_growing(out / SCORES, remedy)
    if video:
        require_writable(out / VIDEOS, "the directory of the videos", remedy)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean return of one task's score rows: raw, and normalised if the paper has constants for the task."""
    from semopo_tf.run import build

    returns = [row["return"] for row in rows]
    raw = (
        f"return {np.mean(returns):.1f} +- {np.std(returns):.1f} over {len(rows)} episodes (standard deviation of "
        "episodes)"
    )
    values = {rule: paper.normalised(rows[0]["task"], float(np.mean(returns)), rule) for rule in paper.RULES}
    known = [f"{value:.3f} ({rule})" for rule, value in values.items() if value is not None]
    normalised = f"; normalised {', '.join(known)}" if known else ""
    return raw + build.replayed(sum(row["discarded"] for row in rows)) + normalised


def summary_record(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of `--summary`: checkpoint, episodes, mean and population standard deviation of their returns, and the
    environment.
    """
    returns = [row["return"] for row in rows]
    figures = {"episodes": len(rows), "mean": float(np.mean(returns)), "std": float(np.std(returns))}
    return {"checkpoint": rows[0]["checkpoint"], **figures, "environment": rows[0]["environment"]}


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of evaluate.py."""
    parser = run_parser("evaluate.py", __doc__, "the run to evaluate")
    parser.add_argument(
        "--episodes", type=int, help="number of episodes, from a fixed list of seeds (default: eval.final_episodes)"
    )
    parser.add_argument("--environments", type=int, default=1, help="number played side by side; changes no result")
    parser.add_argument("--task", help=TASK_HELP)
    parser.add_argument(
        "--out",
        type=Path,
        help="where to write scores.jsonl and the videos (default: the run, whose tables and figures count them)",
    )
    about_summary = "write the mean return to this JSON file once all episodes are played; scripts can wait for it"
    parser.add_argument("--summary", type=Path, metavar="FILE", help=about_summary)
    parser.add_argument("--video", action="store_true", help="write videos of episodes and their reconstructions")
    parser.add_argument(
        "--background", help="folder of videos, builtin:driving, or none (default: as in the dataset card)"
    )
    for key, choices in configuration.SHOWN.items():
        parser.add_argument(f"--{key}", choices=choices)
    parser.add_argument("--render", choices=configuration.RENDERS, help="how the simulator draws")
    about_distractor = "whether a second body of the task is shown"
    parser.add_argument("--distractor", choices=configuration.DISTRACTORS, help=about_distractor)
    return parser.parse(argv, episodes=1, environments=1)


def write_videos(directory: Path, run: Run, episodes: list[Episode]) -> list[Path]:
    """Write a video of the episodes, and one of the learner's pictures of them, as in training.

    Returns:
      The files written.
    """
    paths = [directory / f"evaluation-{run.phase}-{run.step:09d}-{kind}.mp4" for kind in ("episodes", "model")]
    frames = np.concatenate([episode.image for episode in episodes])
    write_video(paths[0], frames.repeat(4, 1).repeat(4, 2))
    length = min(VIDEO_LENGTH, *(len(episode.image) for episode in episodes))
    rows = run.learner.pictures(as_batch(episodes, length), run.key("report"), min(VIDEO_CONTEXT, length - 1))
    write_video(paths[1], video_grid({name: row.numpy() for name, row in rows.items()}))
    return paths


if __name__ == "__main__":
    run_command(main)
