"""`python -m semopo_tf.report LOGDIR ... --out DIR`: one HTML page about runs, from the files that they left and nothing else.

    data, references      dataset.json of --data DIR ...: mean return of each behaviour
    runs                  config.yaml, metrics.jsonl, timing.jsonl, scores.jsonl, analysis/probe.json, videos/model-*.mp4

The page is one file without scripts or links to elsewhere; it can be mailed. Needs no TensorFlow.
"""

import base64
import html
import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as imageio
import numpy as np

from semopo_tf import config as configuration
from semopo_tf.cards import read_card
from semopo_tf.errors import CommandParser, ConfigError, DataError, run_command
from semopo_tf.files import FILES, write_whole
from semopo_tf.run import read_records

CURVES = {
    # metric: (heading, phase)
    "image_loss": ("image loss, nats a frame", "model"),
    "reward_loss": ("reward loss, nats", "model"),
    "eval_return": ("return in the environment", "policy"),
    "imagined_reward": ("imagined reward less penalty, a step", "policy"),
}
STRIP_FRAMES = 8  # of a reconstruction video
ROWS = {
    # the video's rows, top to bottom
    "separated": ("truth", "both streams", "endogenous", "exogenous", "mask", "error"),
    "joint": ("truth", "model", "error"),
}
NOTE = """A small exact task, small networks, and one run a method: it shows how the method works and checks that it does. It is no
reproduction of the paper and no ranking of methods: one seed decides nothing. The minutes of both phases stand beside the returns."""
PROBED = """Linear probes of the true states on unseen episodes: 1 is perfect, 0 is no better than the mean, below 0 is worse.
<code>endo</code> is the endogenous stream: the policy sees it (or the joint one) and nothing else. A separated model that works has the
agent's position in <code>endo</code> and the background's phase in <code>exo</code>. The mask is the share of a pixel that the endogenous
stream paints."""
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}figure{margin:1rem 0}figcaption{color:#555}
.strip{display:flex}.strip div{display:flex;flex-direction:column;padding-right:.8rem;text-align:right;font-size:.8rem}
.strip span{flex:1;display:flex;align-items:center;justify-content:end}.strip img{width:100%;min-width:0;image-rendering:pixelated}"""
BEHAVIOURS = {"iid": "uniform random actions", "expert": "analytic controller"}  # others by their name


class Finished(NamedTuple):
    """What a run's directory says."""

    name: str
    logdir: Path
    config: Any
    metrics: list[dict[str, Any]]
    minutes: dict[str, float]  # of each phase, training alone
    scores: list[float]  # returns of the final evaluation
    probe: dict[str, Any] | None


def main(argv: list[str]) -> int:
    """Write the page.

    Raises:
      SemopoError: any of `errors`; ConfigError for a directory that is no run.
    """
    parser = CommandParser(prog="python -m semopo_tf.report", description=__doc__.splitlines()[0])
    parser.add_argument("logdirs", nargs="+", type=Path, metavar="LOGDIR")
    parser.add_argument("--data", nargs="*", type=Path, default=[], help="datasets with a card, whose mean returns stand beside those of the runs")
    parser.add_argument("--out", required=True, type=Path, help="folder of the page, index.html")
    parser.add_argument("--title", default="semopo_tf: report")
    arguments = parser.parse_args(argv)
    runs = [read_run(logdir.expanduser()) for logdir in arguments.logdirs]
    used = {Path(run.config.offline_dir).expanduser().resolve() for run in runs}
    references = [read_reference(directory.expanduser(), used) for directory in arguments.data]
    FILES.make_directory(arguments.out)
    target = arguments.out / "index.html"
    write_whole(target, page(arguments.title, runs, references).encode())
    print(f"report: {target}")
    return 0


def read_run(logdir: Path) -> Finished:
    """Everything that the page needs of a run.

    Raises:
      ConfigError: when the directory is no run, or one without metrics.
    """
    metrics = read_records(logdir / "metrics.jsonl")
    if not (logdir / "config.yaml").is_file() or not metrics:
        raise ConfigError(f"{logdir}: expected the logdir of a run with metrics, found none")
    config = configuration.load_saved(logdir / "config.yaml")
    last = [row for row in read_records(logdir / "scores.jsonl") if row["source"] == "train"]
    analysis = logdir / "analysis" / "probe.json"
    found = json.loads(analysis.read_text()) if analysis.exists() else None
    return Finished(config.method, logdir, config, metrics, phase_minutes(logdir), [row["return"] for row in last], found)


def phase_minutes(logdir: Path) -> dict[str, float]:
    """Wall-clock minutes of each phase, compilation and evaluations included; the time between a stop and the next start is left out."""
    found: dict[str, float] = {}
    before = 0.0
    for row in read_records(logdir / "timing.jsonl"):
        found[row["phase"]] = found.get(row["phase"], 0.0) + (0.0 if row.get("start") else (row["time"] - before) / 60)
        before = row["time"]
    return found


def read_reference(directory: Path, used: Collection[Path]) -> tuple[str, dict[str, Any]]:
    """(behaviour, its statistics) of a dataset, which is one of those `used` by the runs or not.

    Raises:
      DataError: for a dataset without a complete card.
    """
    card = read_card(directory)
    if not card or "returns" not in card:
        raise DataError(f"{directory}: expected a dataset with a complete card; collect it with python -m semopo_tf.collect")
    behaviour = BEHAVIOURS.get(card["policy"], f"{card['policy']} behaviour")
    said = f"the data: {behaviour}" if directory.resolve() in used else behaviour
    return f"{said} ({card['episodes']} episodes)", card["returns"]


def page(title: str, runs: Sequence[Finished], references: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The whole page."""
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{NOTE}</p>", "<h2>Returns</h2>", return_table(runs, references)]
    if any(run.probe for run in runs):
        parts += ["<h2>What the latent states know</h2>", probe_table(runs)]
    parts += ["<h2>What the models see</h2>", *(strip(run) for run in runs), "<h2>Learning</h2>", curves(runs)]
    parts += ["<h2>Settings</h2>", *(settings(run) for run in runs)]
    head = f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style></head>"
    return head + "<body>" + "\n".join(parts) + "</body></html>\n"


def cells(rows: Sequence[Sequence[str]]) -> str:
    """An HTML table, its first row the heading."""
    lines = []
    for place, row in enumerate(rows):
        tag = "td" if place else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>" + "".join(lines) + "</table>"


def return_table(runs: Sequence[Finished], references: Sequence[tuple[str, dict[str, Any]]]) -> str:
    rows: list[tuple[str, ...]] = [("", "return, mean", "std of episodes", "min", "max", "model phase, min", "policy phase, min")]
    for name, returns in references:
        rows.append((name, *(f"{returns[key]:.1f}" for key in ("mean", "std", "min", "max")), "-", "-"))
    for run in runs:
        scores = np.array(run.scores or [np.nan])
        spread = (f"{value:.1f}" for value in (scores.mean(), scores.std(), scores.min(), scores.max()))
        rows.append((f"{run.name} ({len(run.scores)} episodes)", *spread, *(f"{run.minutes.get(phase, 0):.1f}" for phase in ("model", "policy"))))
    return cells(rows)


def probe_table(runs: Sequence[Finished]) -> str:
    probed = [(run.name, run.probe) for run in runs if run.probe]
    columns = [(name, stream, found) for name, found in probed for stream in found["r2"]]
    rows = [("R² on unseen episodes", *(f"{name}: {stream}" for name, stream, _ in columns))]
    for quantity in probed[0][1]["r2"][next(iter(probed[0][1]["r2"]))]:
        rows.append((quantity, *(f"{found['r2'][stream][quantity]:.2f}" for _, stream, found in columns)))
    for ahead in ("5", "15"):
        values = (found["open_loop"][stream].get("position", {}).get(ahead) for _, stream, found in columns)
        rows.append((f"position {ahead} steps ahead, open loop", *("-" if value is None else f"{value:.2f}" for value in values)))
    rows.append(("reward head", *(f"{found['reward_r2']:.2f}" if stream in ("endo", "joint") else "-" for _, stream, found in columns)))
    for where in ("on", "off"):
        values = (found["mask"][where] if found["mask"] and stream == "endo" else None for _, stream, found in columns)
        rows.append((f"mask {where} the agent", *("-" if value is None else f"{value:.2f}" for value in values)))
    return cells(rows) + f"<p>{PROBED}</p>"


def strip(run: Finished) -> str:
    """Frames of the last reconstruction video side by side: its first sequence."""
    videos = sorted((run.logdir / "videos").glob("model-*.mp4"))
    if not videos:
        return f"<p>{html.escape(run.name)}: no reconstruction video.</p>"
    frames = imageio.imread(videos[-1], plugin="FFMPEG")
    places = np.linspace(0, len(frames) - 1, STRIP_FRAMES).astype(int)
    width, context = frames.shape[2] // run.config.video.episodes, run.config.video.context
    image = np.concatenate(list(frames[places][:, :, :width]), 1)
    labels = "".join(f"<span>{label}</span>" for label in ROWS[run.config.model.kind])
    caption = (
        f"{run.name}: frames {', '.join(map(str, places + 1))}; the first {context} are filtered, the rest rolled out under the true actions, unseen."
    )
    picture = f"<img src='{embedded(image)}' alt='{html.escape(caption)}'>"
    return f"<figure><div class='strip'><div>{labels}</div>{picture}</div><figcaption>{html.escape(caption)}</figcaption></figure>"


def embedded(image: np.ndarray) -> str:
    """image [H, W, 3] uint8 as a data address."""
    return "data:image/png;base64," + base64.b64encode(imageio.imwrite("<bytes>", image, extension=".png")).decode()


def curves(runs: Sequence[Finished]) -> str:
    """One small figure a metric, a line a run, as an SVG."""
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (metric, (heading, phase)) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for run in runs:
            points = [(row["step"], row[metric]) for row in run.metrics if row["phase"] == phase and metric in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=run.name, marker="." if len(points) < 20 else "")
        axes.set(title=heading, xlabel=f"{phase} updates")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    return drawn[drawn.index("<svg") :]


def settings(run: Finished) -> str:
    """What differs from the defaults."""
    different = configuration.differing(configuration.defaults(), run.config)
    lines = "\n".join(f"{key}: {value}" for key, (_, value) in different.items() if key not in ("logdir", "offline_dir"))
    return f"<details><summary>{html.escape(run.name)}</summary><pre>{html.escape(lines)}</pre></details>"


if __name__ == "__main__":
    run_command(main)
