"""Readers for the real data sets, each checked against a pinned checksum.

`load` reads a data set as NumPy arrays, `available` says whether it can be read
here, and `fetch` downloads it (nothing else ever touches the network). The files
live under the folder named by the variable `GEOLIB_DATA`, else in a cache folder
in the user's home; `digits`, `diabetes` and `breast_cancer` need no file.
"""

from geolib.doors import guarded as _guarded

from .api import available as available, fetch as fetch, load as load, names as names
from .dataset import DataError as DataError, Dataset as Dataset

__all__ = _guarded(globals())
