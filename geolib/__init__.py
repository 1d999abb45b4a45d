"""The geometry of learning: the map from parameters to functions, made computable.

Each chapter of the book has a subpackage (`stratifolds`, `naturality`, `geodesics`,
`regimes`, `inverse_stability`); all of them stand on `geolib.core`. Importing
`geolib` alone imports none of them.
"""

__version__ = "0.1.0"
