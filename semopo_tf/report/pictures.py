"""Pictures of what the models see: strips of the videos of training, reconstructions (Figure 5), frames with their
uncertainties (Figure 3).
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.report.groups import ANALYSE, Group, by_dataset, own_command
from semopo_tf.report.page import Part, caption_html, embedded
from semopo_tf.report.run_record import RunRecord
from semopo_tf.storage.untrusted import read_whole
from semopo_tf.storage.video import read_frames

MAX_PICTURE_BYTES = 1 << 26
STRIP_FRAMES = 8  # of a reconstruction video
ROWS = {
    # of that video, top to bottom
    "separated": ("truth", "both streams", "endogenous", "exogenous", "mask", "error"),
    "joint": ("truth", "model", "error"),
}
STREAMS = {"endo": "endogenous", "exo": "exogenous", "joint": "joint"}
FRAMES_CAPTION = """Two groups of three frames of the dataset, under each the disagreement of the ensembles (mean of
norms) about that frame: endo and exo of a separated model, joint of a model with a single stream. The paper prints for
six frames of cheetah_run: endogenous .088 .088 .089 and .131 .132 .131, exogenous .445 .300 .358 and .413 .208 .445,
joint .172 .173 .175 and .230 .231 .234. One seed and six frames each are examples, not statistics; those are in
Figures 2, 7 and 8."""
RECONSTRUCTIONS_CAPTION = """Frames of the dataset after filtering up to them, and the unmasked mean of the endogenous
(or joint) decoder; the first seed of each method. The state knows what is sharp in a reconstruction, and may still know
what is blurred or absent: a picture measures nothing. analysis/reconstruction.png of a run has all rows."""


def frames_part(groups: Sequence[Group]) -> Part:
    """Figure 3: the first seed of each method on each dataset that has the record."""
    title, blocks = "Frames and how uncertain the model is about them", []
    for group in groups:
        if run := _first(group, "uncertainty"):
            heading = html.escape(f"{group.dataset.label}, {group.label}, seed {run.seed}")
            blocks.append(f"<div><h4>{heading}</h4>{_frames(run)}</div>")
    if not blocks:
        why = "no finished run has analysis/uncertainty.json."
        return Part("Figure 3", title, missing=why, command=own_command(groups, ANALYSE))
    body = f"<div class=blocks>{''.join(blocks)}</div><figure>{caption_html(FRAMES_CAPTION)}</figure>"
    return Part("Figure 3", title, body)


def reconstructions_part(groups: Sequence[Group]) -> Part:
    """Figure 5: for each dataset, observations and below them what each method's acting stream shows."""
    title, blocks = "Observations and what the policy's state shows of them", []
    for dataset, same in by_dataset(groups).items():
        names, rows, seen = list[str](), list[np.ndarray](), list[list]()
        for group in same:
            run = _first(group, "reconstruction")
            if run is None:
                continue
            record, picture = run.analyses["reconstruction"], _rows(run)
            if record["places"] != seen:
                names, rows, seen = [*names, "observation"], [*rows, picture["observation"]], record["places"]
            stream = "endo" if "endo" in picture else "joint"
            names.append(f"{group.label}, {STREAMS[stream]}")
            rows.append(picture[stream])
        if rows:
            shows = f"{dataset.label}: frames {', '.join(str(place[-1]) for place in seen)} of their episodes"
            blocks.append(f"<h4>{html.escape(dataset.label)}</h4>{strip_html(names, np.concatenate(rows), shows)}")
    if not blocks:
        why = "no finished run has analysis/reconstruction.json."
        return Part("Figure 5", title, missing=why, command=own_command(groups, ANALYSE))
    return Part("Figure 5", title, "".join(blocks) + f"<figure>{caption_html(RECONSTRUCTIONS_CAPTION)}</figure>")


def strips_part(groups: Sequence[Group]) -> Part:
    """Frames of the last reconstruction video of each method on each dataset: its first sequence."""
    title, blocks = "What the models see, filtered and in open loop", []
    for group in groups:
        videos = {run.logdir: sorted((run.logdir / "videos").glob("model-*.mp4")) for run in group.runs}
        if run := next((run for run in group.runs if videos[run.logdir]), None):
            blocks.append(_strip(group, run, videos[run.logdir][-1]))
    if not blocks:
        why = "no run has videos/model-*.mp4; training writes them unless video.every is 0."
        return Part("Strips", title, missing=why, command="python train.py ... --video.every 1000")
    return Part("Strips", title, f"<div class=blocks>{''.join(blocks)}</div>")


def strip_html(names: Sequence[str], image: np.ndarray, shows: str) -> str:
    """A picture with named rows, in a box that scrolls sideways. image [H, W, 3] uint8."""
    labels = "".join(f"<span>{html.escape(name)}</span>" for name in names)
    picture = f"<img alt='{html.escape(shows, quote=True)}' src='{_png(image)}'>"
    return f"<div class=strip tabindex=0><div class=names>{labels}</div><div class=frame>{picture}</div></div>"


def _first(group: Group, name: str) -> RunRecord | None:
    """The first seed that has an analysis with its picture."""
    return next((run for run in group.analysed(name) if (run.logdir / "analysis" / f"{name}.png").exists()), None)


def _frames(run: RunRecord) -> str:
    """The frames of uncertainty.png, each with its values below it."""
    frames, image = run.analyses["uncertainty"]["frames"], _picture(run, "uncertainty")
    values = {stream: frames["values"][stream] for stream in STREAMS if stream in frames["values"]}
    sizes, total = [len(group) for group in frames["groups"]], sum(map(len, frames["groups"]))
    fits = all([len(group) for group in each] == sizes for each in values.values())
    if not fits or not all(map(all, frames["groups"])) or not total or image.shape[1] % total:
        raise DataError(
            f"{run.logdir / 'analysis' / 'uncertainty.json'}: its groups, values and picture have different numbers "
            "of frames; analyse again"
        )
    pieces, cells = iter(np.split(image, total, 1)), []
    for number, group in enumerate(frames["groups"]):
        for index, where in enumerate(group):
            text = "<br>".join(f"{stream} {each[number][index]:.3f}" for stream, each in values.items())
            alt = html.escape(f"frame {where[-1]} of {where[0]}", quote=True)
            cells.append(f"<div><img alt='{alt}' src='{_png(next(pieces))}'>{text}</div>")
        cells.append("<div class=gap></div>")
    return f"<div class=frames>{''.join(cells[:-1])}</div>"


def _rows(run: RunRecord) -> dict[str, np.ndarray]:
    """The rows of reconstruction.png by name."""
    record, image = run.analyses["reconstruction"], _picture(run, "reconstruction")
    expected = (len(record["rows"]) * record["size"], record["frames"] * record["size"])
    known = "observation" in record["rows"] and {"endo", "joint"} & set(record["rows"])
    places = record["places"]
    if image.shape[:2] != expected or not known or len(places) != record["frames"] or not all(places):
        raise DataError(
            f"{run.logdir / 'analysis' / 'reconstruction.json'}: not what its picture shows ({image.shape[0]} x "
            f"{image.shape[1]}); analyse again"
        )
    return dict(zip(record["rows"], np.split(image, len(record["rows"])), strict=True))


def _strip(group: Group, run: RunRecord, video: Path) -> str:
    try:
        frames = np.stack(list(read_frames(video)))
    except ValueError as error:
        raise DataError(f"{video}: cannot be read as a video ({error}); remove it") from error
    chosen = np.linspace(0, len(frames) - 1, STRIP_FRAMES).astype(int)
    width, context = frames.shape[2] // max(1, run.settings["video.episodes"]), run.settings["video.context"]
    image = np.concatenate(list(frames[chosen][:, :, :width]), 1)
    caption = f"""{group.dataset.label}, {group.label}, seed {run.seed}: frames {", ".join(map(str, chosen + 1))} of
        {video.name}; the first {context} are filtered, the rest are open-loop predictions under the true actions."""
    names = ROWS.get(run.settings["model.kind"], ROWS["joint"])
    return f"<figure>{strip_html(names, image, ' '.join(caption.split()))}{caption_html(caption)}</figure>"


def _picture(run: RunRecord, name: str) -> np.ndarray:
    """[H, W, 3] uint8."""
    path = run.logdir / "analysis" / f"{name}.png"
    try:
        image: Any = imageio.imread(read_whole(path, MAX_PICTURE_BYTES)[0], plugin="pillow")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as a picture; analyse the run again") from error
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(f"{path}: expected a colour picture, received shape {list(image.shape)}; analyse the run again")
    return image


def _png(image: np.ndarray) -> str:
    return embedded(imageio.imwrite("<bytes>", image, extension=".png"), "png")
