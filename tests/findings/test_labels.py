"""How points, distances and numbers are named."""

from __future__ import annotations

import pytest

from ddim.findings.labels import distance_name, eta_label, eta_order, significant


@pytest.mark.parametrize(
    ("eta", "variance", "label"),
    [
        (0, "eta", "0"),
        (0.2, "eta", "0.2"),
        (1.0, "eta", "1"),
        (1, "sigma_hat", "σ̂"),
        (1, "sigma_hat_official", "σ̂ clipped"),
    ],
)
def test_eta_label(result, eta: float, variance: str, label: str) -> None:
    assert eta_label(result(eta=eta, variance=variance)) == label


def test_eta_labels_sort_by_value_with_sigma_hat_last() -> None:
    assert sorted(["σ̂ clipped", "1", "σ̂", "0.5", "0", "0.25"], key=eta_order) == [
        "0",
        "0.25",
        "0.5",
        "1",
        "σ̂",
        "σ̂ clipped",
    ]


@pytest.mark.parametrize(
    ("features", "name"),
    [("inception-v3-compat", "FID"), ("digits-cnn", "FD (digits-cnn)"), ("inception-v3", "FD (inception-v3)")],
)
def test_only_canonical_features_make_a_fid(features: str, name: str) -> None:
    assert distance_name(features) == name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (4.162345, "4.162"),
        (13.356, "13.36"),
        (123456.7, "123457"),
        (0.0123456, "0.01235"),
        (0.0, "0.000"),
        (9.99996, "10.00"),
        (-0.00123456, "-0.001235"),
        (0.00000123456, "1.235e-06"),
        (float("nan"), "nan"),
    ],
)
def test_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text
