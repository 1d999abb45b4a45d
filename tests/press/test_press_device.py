"""`--profile full --device cuda` for the book's own chapters, where there is no GPU."""

import pytest
import torch

from geolib.press.notebook import PressError, discover, parameters
from geolib.press.run import Settings, press, staged_path

CHAPTERS = ("geodesics", "inverse_stability", "naturality", "regimes", "stratifolds")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_says_that_there_is_no_gpu_and_runs_nothing(root, chapter):
    notebooks = discover(root, [chapter])
    before = [staged_path(n, "full").exists() for n in notebooks]
    settings = Settings(profile="full", device="cuda")
    with pytest.raises(PressError, match="cuda was asked for, but torch .* no CUDA"):
        press(notebooks, settings, report=lambda line: None)
    assert [staged_path(n, "full").exists() for n in notebooks] == before


def test_every_full_profile_names_only_what_its_notebook_declares(root):
    for notebook in discover(root):
        values = parameters(notebook, "full", notebook.device("cuda"))
        assert values.get("device", "cpu") == notebook.device("cuda")
