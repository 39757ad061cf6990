"""Shows what the parts of an evaluation find: pictures and animations as files, in the end words on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from ddim.display.clouds import against_figure, density_figure, flow_figure
from ddim.display.curves import steps_figure
from ddim.display.figures import distance_figure, drawn, speed_figure
from ddim.display.images import animation, each_captioned, image_grid, labelled_rows, sample_sheet, samples_picture
from ddim.display.samples import as_images, is_image, overview
from ddim.findings.labels import point_key
from ddim.findings.telling import (
    Against,
    Animation,
    Audience,
    Captioned,
    Curves,
    Densities,
    Findings,
    Flow,
    GridFigure,
    Picture,
    Row,
    Sheet,
    Single,
    Strip,
    Words,
)
from ddim.runs.files import save_picture


def draw(picture: Picture) -> PIL.Image.Image:
    """A still picture as pixels. Raises TypeError for an animation, which is a file."""
    match as_images(picture):
        case Strip(rows, title, columns, breaks):
            return labelled_rows(rows, title, columns, breaks=breaks)
        case Captioned(images, captions, marked, title):
            return each_captioned(images, captions, marked, title)
        case Sheet(images, title, column):
            return sample_sheet(images, title, column)
        case Single(image):
            return image_grid([image], 1, 1)
        case Curves(panels, title, subtitle):
            return steps_figure(panels, title, subtitle)
        case GridFigure("distance", rows, floor):
            return drawn(distance_figure(rows, floor))
        case GridFigure("speed", rows):
            return drawn(speed_figure(rows))
        case Flow() as flow:
            return flow_figure(flow)
        case Against() as found:
            return against_figure(found)
        case Densities() as maps:
            return density_figure(maps)
    raise TypeError(f"{type(picture).__name__} is no still picture")


class Pictures(Audience):
    """Draws every picture once, into `directory`, and prints what was found when all is done.

    `last` and `samples` are the picture (of an animation its file) and the samples that were drawn last, for those who
    show them elsewhere.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths: list[Path] = []
        self.ended: list[Findings] = []
        self.last: PIL.Image.Image | Path | None = None
        self.samples: PIL.Image.Image | None = None

    def row(self, said: Findings, rows: Sequence[Row], images: Any) -> None:
        if images is None:
            return
        self.samples = samples_picture(images if is_image(images) else overview(images))
        save_picture(self.samples, self.directory / "samples" / f"{point_key(rows[0]).replace('/', '-')}.png")

    def picture(self, said: Findings, what: str, picture: Picture, caption: str) -> None:
        name = said.part.picture_name(what)
        picture = as_images(picture)
        if isinstance(picture, Animation):
            path = self.directory / f"{name}.gif"
            frames, options = animation(picture)
            save_picture(frames[0], path, append_images=frames[1:], **options)
            self.last = path
        else:
            path = self.directory / f"{name}.png"
            self.last = draw(picture)
            save_picture(self.last, path)
        self.paths.append(path)

    def end(self, said: Findings) -> None:
        self.ended.append(said)

    def say(self, words: Words, silent: Collection[str] = ()) -> None:
        """What the parts found, each with the path of its table. silent: parts of which nothing is said."""
        for said in self.ended:
            if said.part.name not in silent:
                said.part.words(said.rows, said.extra, words)
                words.say(f"\nTable     {self.directory / said.part.table_name()}.csv")

    def listed(self) -> str:
        """The names of the pictures, as they stand below the directory."""
        return ", ".join(str(path.relative_to(self.directory)) for path in self.paths)
