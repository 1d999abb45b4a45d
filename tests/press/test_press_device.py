"""`--profile full --device cuda` for the book's own chapters, where there is no GPU."""

import pytest
import torch

from geolib.press import Build, PressError
from geolib.press.notebook import discover, parameters
from geolib.press.pool import Settings, press

CHAPTERS = ("geodesics", "inverse_stability", "naturality", "regimes", "stratifolds")


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU there is no such error to see"
)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_says_that_there_is_no_gpu_and_runs_nothing(root, chapter):
    notebooks = discover(root, [chapter])
    before = [Build(n.root, "full").stage(n).exists() for n in notebooks]
    settings = Settings(profile="full", device="cuda")
    with pytest.raises(PressError, match="cuda was asked for, but torch .* no CUDA"):
        press(notebooks, settings, report=lambda line: None)
    assert [Build(n.root, "full").stage(n).exists() for n in notebooks] == before


def test_every_full_profile_names_only_what_its_notebook_declares(root):
    for notebook in discover(root):
        values = parameters(notebook, "full", notebook.device("cuda"))
        assert values.get("device", "cpu") == notebook.device("cuda")


def test_a_notebook_is_parsed_anew_when_its_text_changes_and_lends_no_cells(root):
    notebook = discover(root, ["naturality"])[0]
    first = notebook.read()
    count = len(first.cells)
    first.cells.clear()
    first.metadata["mine"] = True
    assert len(notebook.read().cells) == count
    assert "mine" not in notebook.read().metadata
