import pytest
from lightrft_core.estimates import estimate


def test_the_interval_is_students_over_the_values():
    found = estimate([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.margin == pytest.approx(4.303 * (14 / 2 / 3) ** 0.5)
    assert found.count == 3


def test_many_values_take_the_normal_quantile():
    values = [float(number % 2) for number in range(100)]
    assert estimate(values).margin == pytest.approx(1.96 * (25 / 99 / 100) ** 0.5)


def test_one_value_has_no_margin_and_none_no_estimate():
    assert estimate([0.5]).written() == "0.500"
    assert estimate([0.25, 0.75]).written(1) == "0.5 ± 3.2"
    assert estimate([]) is None
