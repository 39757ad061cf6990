"""Reconstructions of several solvers at once: nothing of one stands in the place of another's."""

from __future__ import annotations

import torch

from ddim.findings.parts.reconstruction import PART, pictures


def rows():
    shared = {"split": "test", "num_images": 4, "encode_nfe": 5, "nfe": 5, "eta": 0.0, "variance": "eta"}
    shared |= {"tau": "linear", "steps": 5, "mse_per_dimension": 0.1, "seconds": 1.0}
    return [
        {**shared, "sampler": "ddim", "options": ()},
        {**shared, "sampler": "deis", "options": ()},
        {**shared, "sampler": "deis", "options": (("order", 2),)},
    ]


def test_each_has_its_own_picture():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    drawn = list(pictures(rows(), images, [images] * 3))
    named = [name for name, *_ in drawn]
    assert list(drawn[-1][1].panels[0].lines) == ["ddim linear τ", "deis linear τ", "deis order2 linear τ"]
    assert named == ["images", "images-deis", "images-deis-order2", "error"]


def test_each_has_its_own_keys():
    assert [list(PART.curves(row)) for row in rows()] == [
        ["reconstruction/mse/linear"],
        ["reconstruction/mse/deis/linear"],
        ["reconstruction/mse/deis/order2/linear"],
    ]
    assert len(PART.summary(rows(), {})) == 3


def test_the_table_says_whose_line_it_is_where_there_are_several():
    class Said:
        def say(self, *_):
            pass

        def table(self, headers, lines):
            self.headers, self.lines = headers, lines

    said = Said()
    PART.words(rows(), {}, said)
    assert said.headers[0] == "sampler" and [line[0] for line in said.lines] == ["ddim", "deis", "deis order2"]
    PART.words(rows()[:1], {}, said)
    assert said.headers[0] == "S"
