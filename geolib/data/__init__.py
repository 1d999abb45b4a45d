"""Readers for the real data sets, each checked against a pinned checksum.

`load` reads a data set as NumPy arrays, `available` says whether it can be read
here, and `fetch` downloads it (nothing else ever touches the network). The files
live under the folder named by the variable `GEOLIB_DATA`, else in a cache folder
in the user's home; `digits`, `diabetes` and `breast_cancer` need no file.
"""

from geolib.data.api import available as available
from geolib.data.api import fetch as fetch
from geolib.data.api import load as load
from geolib.data.api import names as names
from geolib.data.dataset import DataError as DataError
from geolib.data.dataset import Dataset as Dataset
from geolib.doors import guarded as _guarded

__all__ = _guarded(globals())
