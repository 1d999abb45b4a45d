import numpy as np
import pytest

from geolib.regimes import Setup
from geolib.regimes.setup import check_times


def test_ratios_rate_and_floor():
    s = Setup(d=200, h=100, n=50, sigma2=0.02)
    assert s.rho == pytest.approx(2.0)
    assert s.kappa == pytest.approx(4.0)
    assert (s.c, s.eta) == (4.0, 0.5)
    assert s.rate == pytest.approx(16.0)
    assert s.times(5)[-1] == pytest.approx(3 / 16)


@pytest.mark.parametrize("name", ["d", "h", "n"])
@pytest.mark.parametrize("size", [0, -3, 2.5, True])
def test_sizes_must_be_whole_and_positive(name, size):
    sizes = {"d": 4, "h": 4, "n": 4, name: size}
    with pytest.raises(ValueError, match=f"^{name}: expected a whole number"):
        Setup(**sizes, sigma2=1.0)


@pytest.mark.parametrize("sigma2", [0.0, -1.0, float("nan"), float("inf")])
def test_variance_must_be_positive(sigma2):
    with pytest.raises(ValueError, match=r"^sigma2: .* 0 < sigma2"):
        Setup(4, 4, 4, sigma2)


def test_from_ratios_names_the_bad_ratio():
    with pytest.raises(ValueError, match=r"^eta: "):
        Setup.from_ratios(8, eta=0.0)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([0.0, 1.0, 1.0], r"increase.*\[0.0, 1.0, 1.0\]"),
        ([-1.0, 0.0], "from 0 or later"),
        ([0.0, np.nan], "finite"),
        ([], r"got \[\]"),
        ([[0.0, 1.0]], r"got \[\[0.0"),
    ],
)
def test_times_are_checked(times, said):
    with pytest.raises(ValueError, match=said):
        check_times(times)
