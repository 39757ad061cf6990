"""Text where nothing but ASCII can be shown."""

from __future__ import annotations

import pytest

from ddim.display.terminal import ascii_text


@pytest.mark.parametrize(
    "text, shown",
    [("Fréchet 1 ± 2", "Frechet 1 +- 2"), ("η ≤ σ̂", "eta <= sigma_hat"), ("|Ax−y|", "|Ax-y|"), ("数", r"\u6570")],
)
def test_letters_stay_letters(text, shown):
    assert ascii_text(text) == shown
