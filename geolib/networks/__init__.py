"""What is known of modules, for all chapters: structure, symmetries, training."""

from geolib.files import exported as _exported
from geolib.networks.erf_kernel import ErfKernel as ErfKernel
from geolib.networks.sequential import (
    HiddenUnits as HiddenUnits,
    Stage as Stage,
    channel_vectors as channel_vectors,
    hidden_units as hidden_units,
    named_layers as named_layers,
    read_stages as read_stages,
    weight_blocks as weight_blocks,
)
from geolib.networks.weight_matching import (
    Alignment as Alignment,
    align as align,
    permute_channels as permute_channels,
)

__all__ = _exported(globals())
