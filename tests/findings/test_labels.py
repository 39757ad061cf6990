"""How points, distances and numbers are named."""

from __future__ import annotations

import pytest

from ddim.findings.labels import distance_name, eta_label, eta_order, eta_title, line_label, significant, with_sd


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


@pytest.mark.parametrize(
    ("value", "sd", "text"),
    [
        (1.624, 0.131, "1.62 ± 0.13"),
        (1.624, 0.0131, "1.624 ± 0.013"),
        (0.618, 0.0456, "0.618 ± 0.046"),
        (1.6, 2.31, "1.6 ± 2.3"),
        (162.4, 13.1, "162 ± 13"),
        (1624.4, 131.0, "1624 ± 131"),
        (0.0001234, 0.00001, "0.000123 ± 0.000010"),
        (-0.0024, 0.0013, "-0.0024 ± 0.0013"),
        (1.624, 9.96, "1.6 ± 10.0"),
        (1.624, None, "1.624"),
        (1.624, 0.0, "1.624"),
        (1.624, float("nan"), "1.624"),
        (1.624, float("inf"), "1.624"),
        (float("nan"), 0.1, "nan"),
        (float("inf"), 0.1, "inf"),
        (None, 0.1, "-"),
        (None, None, "-"),
    ],
)
def test_a_number_has_the_places_of_two_digits_of_its_deviation(value, sd, text) -> None:
    assert with_sd(value, sd) == text


def test_without_a_deviation_digits_are_those_that_are_asked_for() -> None:
    assert (with_sd(1.624, None, 2), with_sd(1.624, 0.131, 2)) == ("1.6", "1.62 ± 0.13")


class TestLines:
    def labels(self, result, *settings) -> list[str]:
        rows = [result(**one) for one in settings]
        labels = [line_label(row, rows) for row in rows]
        assert labels == [line_label(row.as_record(), [other.as_record() for other in rows]) for row in rows]
        return labels

    def test_of_one_sampler_it_is_eta(self, result) -> None:
        assert self.labels(result, {"eta": 0.0}, {"eta": 0.5}, {"variance": "sigma_hat"}) == ["0", "0.5", "σ̂"]
        assert self.labels(result, {"sampler": "deis"}, {"sampler": "deis", "steps": 20}) == ["0", "0"]

    def test_of_several_with_one_eta_it_is_the_sampler_and_what_sets_it_apart(self, result) -> None:
        of_order = {"sampler": "deis", "options": (("interpolates", "v"), ("order", 2))}
        assert self.labels(result, {}, {"sampler": "deis"}, of_order) == ["ddim", "deis", "deis interpolatesv order2"]
        assert self.labels(result, {}, {"options": (("eps_scale", 1.01),)}) == ["ddim", "ddim eps_scale1.01"]

    def test_of_several_with_several_etas_it_is_both(self, result) -> None:
        found = self.labels(result, {}, {"eta": 0.5}, {"sampler": "sde", "eta": 1.0}, {"variance": "sigma_hat"})
        assert found == ["ddim, η = 0", "ddim, η = 0.5", "sde, η = 1", "ddim, σ̂"]
        assert [eta_title(label) for label in found] == found
