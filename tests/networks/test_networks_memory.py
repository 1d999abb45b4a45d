"""Halving the batch until it fits, with a device that is full above a given size."""

import weakref

import pytest
import torch

from geolib.networks import DeviceMemoryError, fitting_batch


def device_of(size):
    """A piece of work that needs more memory than there is above `size`."""
    calls = []

    def run(batch):
        calls.append(batch)
        if batch > size:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(range(batch))

    return run, calls


def test_the_first_size_that_fits_is_used_and_told():
    run, calls = device_of(20)
    assert fitting_batch(run, 100) == (sum(range(12)), 12)
    assert calls == [100, 50, 25, 12]


def test_the_smallest_size_is_tried_before_giving_up():
    run, calls = device_of(3)
    with pytest.raises(DeviceMemoryError, match=r"\[16, 8, 4\]"):
        fitting_batch(run, 16, smallest=4)
    assert calls == [16, 8, 4]


def test_a_failed_try_is_forgotten_before_the_next():
    kept = []

    def run(batch):
        assert all(ref() is None for ref in kept)
        held = torch.zeros(batch)
        kept.append(weakref.ref(held))
        if batch > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return float(held.sum())

    assert fitting_batch(run, 16) == (0.0, 2)
    assert len(kept) == 4


def test_other_errors_pass_through():
    with pytest.raises(ZeroDivisionError):
        fitting_batch(lambda batch: batch / 0, 8)


@pytest.mark.parametrize(("start", "smallest"), [(0, 1), (4, 8), (4, 0)])
def test_impossible_sizes_are_refused(start, smallest):
    wanted = "1 <= smallest <= start|expected a whole number above zero"
    with pytest.raises(ValueError, match=wanted):
        fitting_batch(lambda batch: batch, start, smallest)
