"""What is shown as pictures: frames with their uncertainties (Figure 3), reconstructions (Figure 5), strips of the
training's videos.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np

from semopo_tf.errors import DataError
from semopo_tf.report.groups import Group, analyse_command, by_dataset
from semopo_tf.report.page import Part, caption_html, embedded
from semopo_tf.report.run_record import RunRecord
from semopo_tf.storage.untrusted import read_whole

MAX_PICTURE_BYTES = 1 << 26
MAX_VIDEO_BYTES = 1 << 28
STRIP_FRAMES = 8  # of a reconstruction video
ROWS = {
    # of that video, top to bottom
    "separated": ("truth", "both streams", "endogenous", "exogenous", "mask", "error"),
    "joint": ("truth", "model", "error"),
}
STREAMS = {"endo": "endogenous", "exo": "exogenous", "joint": "joint"}
PRINTED = """The paper prints for six frames of cheetah_run: endogenous .088 .088 .089 and .131 .132 .131, exogenous .445 .300 .358 and .413 .208
.445, joint .172 .173 .175 and .230 .231 .234."""


def frames_part(groups: Sequence[Group]) -> Part:
    """Figure 3: of each method on each dataset the first seed that has the record."""
    title, blocks = "Frames and how uncertain the model is about them", []
    for group in groups:
        run = _first(group, "uncertainty")
        if run:
            blocks.append(
                f"<div><h4>{html.escape(f'{group.dataset.label}, {group.label}, seed {run.seed}')}</h4>{_frames(run)}</div>"
            )
    if not blocks:
        return Part(
            "Figure 3", title, missing="no finished run has analysis/uncertainty.json.", command=analyse_command(groups)
        )
    caption = f"""Two groups of three frames of the dataset, under each the disagreement of the ensembles (mean of norms) about that frame: endo
and exo of a separated model, joint of one with a single stream. {PRINTED} One seed and six frames each: examples, no statistics; Figures 2, 7 and
8 have those."""
    return Part("Figure 3", title, f"<div class=blocks>{''.join(blocks)}</div><figure>{caption_html(caption)}</figure>")


def reconstructions_part(groups: Sequence[Group]) -> Part:
    """Figure 5: for each dataset, observations and under them what each method's acting stream shows."""
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
            shown = f"{dataset.label}: frames {', '.join(str(place[-1]) for place in seen)} of their episodes"
            blocks.append(f"<h4>{html.escape(dataset.label)}</h4>{strip_html(names, np.concatenate(rows), shown)}")
    if not blocks:
        return Part(
            "Figure 5",
            title,
            missing="no finished run has analysis/reconstruction.json.",
            command=analyse_command(groups),
        )
    caption = """Frames of the dataset after filtering up to them, and the unmasked mean of the endogenous (or joint) decoder; the first seed of
each method. What is sharp in a reconstruction is known to the state, what is blurred or absent may still be: a picture measures nothing. All rows
of a run lie in its analysis/reconstruction.png."""
    return Part("Figure 5", title, "".join(blocks) + f"<figure>{caption_html(caption)}</figure>")


def strips_part(groups: Sequence[Group]) -> Part:
    """Frames of the last reconstruction video of each method on each dataset: its first sequence."""
    blocks = []
    for group in groups:
        found = next(
            (
                (run, videos[-1])
                for run in group.runs
                if (videos := sorted((run.logdir / "videos").glob("model-*.mp4")))
            ),
            None,
        )
        if found:
            blocks.append(_strip(group, *found))
    title = "What the models see, filtered and in open loop"
    if not blocks:
        why = "no run has videos/model-*.mp4; training writes them unless video.every is 0."
        return Part("Strips", title, missing=why, command="python train.py ... --video.every 1000")
    return Part("Strips", title, "".join(blocks))


def strip_html(names: Sequence[str], image: np.ndarray, shows: str) -> str:
    """A picture whose rows have names, in a box that scrolls sideways. image [H, W, 3] uint8."""
    said = "".join(f"<span>{html.escape(name)}</span>" for name in names)
    picture = f"<img alt='{html.escape(shows, quote=True)}' src='{_png(image)}'>"
    return f"<div class=strip tabindex=0><div class=names>{said}</div><div class=frame>{picture}</div></div>"


def _first(group: Group, name: str) -> RunRecord | None:
    """The first seed that has an analysis with its picture."""
    return next(
        (run for run in group.finished if name in run.analyses and (run.logdir / "analysis" / f"{name}.png").exists()),
        None,
    )


def _frames(run: RunRecord) -> str:
    found = run.analyses["uncertainty"]["frames"]
    shape = [len(group) for group in found["groups"]]
    image = _picture(run, "uncertainty")
    known = {stream: found["values"][stream] for stream in STREAMS if stream in found["values"]}
    wrong = any([len(group) for group in values] != shape for values in known.values()) or not all(
        where for group in found["groups"] for where in group
    )
    if wrong or not sum(shape) or image.shape[1] % sum(shape):
        raise DataError(
            f"{run.logdir / 'analysis' / 'uncertainty.json'}: its groups, values and picture have different numbers "
            "of frames; analyse again"
        )
    pieces, cells = np.split(image, sum(shape), 1), []
    for number, group in enumerate(found["groups"]):
        for place, where in enumerate(group):
            values = "<br>".join(f"{stream} {each[number][place]:.3f}" for stream, each in known.items())
            piece = pieces[sum(shape[:number]) + place]
            alt = html.escape(f"frame {where[-1]} of {where[0]}", quote=True)
            cells.append(f"<div><img alt='{alt}' src='{_png(piece)}'>{values}</div>")
        cells.append("<div class=gap></div>")
    return f"<div class=frames>{''.join(cells[:-1])}</div>"


def _rows(run: RunRecord) -> dict[str, np.ndarray]:
    """The rows of reconstruction.png by name."""
    record, image = run.analyses["reconstruction"], _picture(run, "reconstruction")
    expected = (len(record["rows"]) * record["size"], record["frames"] * record["size"])
    known = "observation" in record["rows"] and {"endo", "joint"} & set(record["rows"])
    if (
        image.shape[:2] != expected
        or not known
        or len(record["places"]) != record["frames"]
        or not all(record["places"])
    ):
        raise DataError(
            f"{run.logdir / 'analysis' / 'reconstruction.json'}: not what its picture shows ({image.shape[0]} x "
            f"{image.shape[1]}); analyse again"
        )
    return dict(zip(record["rows"], np.split(image, len(record["rows"])), strict=True))


def _strip(group: Group, run: RunRecord, video: Path) -> str:
    frames = _video(video)
    places = np.linspace(0, len(frames) - 1, STRIP_FRAMES).astype(int)
    width, context = frames.shape[2] // max(1, run.settings["video.episodes"]), run.settings["video.context"]
    image = np.concatenate(list(frames[places][:, :, :width]), 1)
    caption = f"""{group.dataset.label}, {group.label}, seed {run.seed}: frames {", ".join(map(str, places + 1))} of {video.name}; the first
{context} are filtered, the rest rolled out under the true actions, unseen."""
    names = ROWS.get(run.settings["model.kind"], ROWS["joint"])
    return f"<figure>{strip_html(names, image, caption)}{caption_html(caption)}</figure>"


def _video(path: Path) -> np.ndarray:
    """Frames [T, H, W, 3]."""
    try:
        read_whole(path, MAX_VIDEO_BYTES)
        frames = imageio.imread(path, plugin="FFMPEG")
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: cannot be read as a video; remove it") from error
    return frames


def _picture(run: RunRecord, name: str) -> np.ndarray:
    """[H, W, 3] uint8."""
    path = run.logdir / "analysis" / f"{name}.png"
    try:
        image: Any = imageio.imread(read_whole(path, MAX_PICTURE_BYTES)[0], plugin="pillow")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: cannot be read as a picture; analyse the run again") from error
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(
            f"{path}: expected a picture in colour, received shape {list(image.shape)}; analyse the run again"
        )
    return image


def _png(image: np.ndarray) -> str:
    return embedded(imageio.imwrite("<bytes>", image, extension=".png"), "png")
