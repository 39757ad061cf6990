"""The forty attributes that CelebA states of every face, as classes: each combination of the chosen ones is one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddim.errors import UserError

ATTRIBUTE_NAMES = ("list_attr_celeba.txt", "list_attr_celeba.csv")
# 2^n classes.
MOST = 8


@dataclass(frozen=True)
class Attributes:
    """Which classes there are, and the class of each image by the name of its file."""

    classes: list[str]
    class_of_name: dict[str, int]

    def class_of(self, path: Path) -> int:
        """Raises `UserError` where the list does not have the image."""
        if path.name not in self.class_of_name:
            raise UserError(f"{path.name} is not in CelebA's list of attributes, which dataset.attributes needs")
        return self.class_of_name[path.name]


def read_attributes(path: Path, chosen: Sequence[str]) -> Attributes:
    """From the official text file or its csv form; class 0 has none of the attributes, the first is the lowest bit.

    Raises:
        UserError: it is no such list, does not have an attribute, or too many are chosen.
    """
    if not 1 <= len(chosen) <= MOST or len(set(chosen)) != len(chosen):
        raise UserError(f"dataset.attributes={list(chosen)} must be from 1 to {MOST} different names")
    rows = [re.split(r"[,\s]+", line.strip()) for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if rows and len(rows[0]) == 1:  # the number of images
        rows = rows[1:]
    names = [name for name in rows[0] if name != "image_id"] if rows else []
    for name in chosen:
        if name not in names:
            raise UserError(f"dataset.attributes={name} is no attribute in {path}; it has {', '.join(names)}")
    columns = [1 + names.index(name) for name in chosen]
    class_of_name = {}
    for row in rows[1:]:
        if len(row) != len(names) + 1 or not set(row[1:]) <= {"-1", "0", "1"}:
            raise UserError(f"{path} is not CelebA's list: the line of {row[0]} has not {len(names)} values of -1 or 1")
        class_of_name[row[0]] = sum((row[column] == "1") << bit for bit, column in enumerate(columns))
    classes = [
        ", ".join(name if number >> bit & 1 else f"not {name}" for bit, name in enumerate(chosen))
        for number in range(2 ** len(chosen))
    ]
    return Attributes(classes, class_of_name)
