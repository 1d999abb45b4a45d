"""From a text notebook to an executed notebook to a page: the book machine.

The press imports no chapter's package; it knows notebooks, profiles, claims, Sphinx.
"""

from .execute import Outcome
from .ledger import Ledger, collect
from .notebook import Notebook, discover
from .run import press
from .site import build_site

__all__ = [
    "Ledger",
    "Notebook",
    "Outcome",
    "build_site",
    "collect",
    "discover",
    "press",
]
