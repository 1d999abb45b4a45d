"""What is known of modules, for all chapters: structure, symmetries, training."""

from geolib.files import exported as _exported

__all__ = _exported(globals())
