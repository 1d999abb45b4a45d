"""From a text notebook to an executed notebook, its pair and its claims.

The press imports no chapter's package; it knows notebooks, profiles and claims. What the
pages and the site look like stands in `book/_ext` of the checkout. What a reader calls is
the command `geolib`; a program starts from `Build`.
"""

from geolib.files import exported as _exported

from .build import Build as Build
from .ledger import Ledger as Ledger
from .notebook import PressError as PressError

__all__ = _exported(globals())
