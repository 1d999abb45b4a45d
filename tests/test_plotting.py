"""Figures that move: what Python writes of them."""

import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from geolib.plotting import LIMIT, moving, shades


def simple(values, **more):
    control = {"name": "t", "label": "a < b", "values": [0.1, 1 / 3], "start": 1}
    layer = {"type": "line", "by": ["t"], "data": values} | more
    axis = {"range": [0, 1], "label": "x"}
    panel = {"x": axis, "y": axis, "layers": [layer]}
    return {"controls": [control], "panels": [panel]}


def made(values, **more):
    return moving(simple(values, **more), plt.figure(), 'what "it" shows')


def test_numbers_are_cut_and_arrays_become_lists():
    open_before = plt.get_fignums()
    figure = made([torch.tensor([[1.0, math.nan]]), np.array([[math.inf, 2 / 3]])])
    text = figure._repr_html_().split('json">')[1].split("</script>")[0]
    layer = json.loads(text)["panels"][0]["layers"][0]
    assert layer["data"] == [[[1, None]], [[None, 0.6667]]]
    assert plt.get_fignums() == open_before


def test_the_page_has_named_sliders_and_alt_text_before_any_script_runs():
    html = made([[], []], label="</script>")._repr_html_()
    assert re.search(r'<input type="range" name="t" min="0"\s+max="1" value="1"', html)
    assert "a &lt; b" in html
    assert 'alt="what &quot;it&quot; shows"' in html
    assert html.count("</script>") == 1


@pytest.mark.parametrize(
    ("values", "match"),
    [([[]], r"expected 2, got 1"), ([[0] * LIMIT, []], "expected at most")],
)
def test_what_does_not_fit_is_refused(values, match):
    with pytest.raises(ValueError, match=match):
        made(values)
    plt.close("all")


def test_lit_faces_are_counted_too():
    with pytest.raises(ValueError, match="got 3"):
        made([[], []], lit={"by": ["t"], "data": [[], [], []]})
    plt.close("all")


def test_shades_are_letters_from_low_to_high():
    assert shades(np.array([-1, 0, 1, 9, math.nan]), 0, 1) == "00zz "
