"""What is known of modules, for all chapters: structure, symmetries, training."""

from geolib.doors import guarded as _guarded
from geolib.networks.batch_norm import (
    recalibrate as recalibrate,
    with_batch_statistics as with_batch_statistics,
)
from geolib.networks.build import lenet as lenet, mlp as mlp, vgg as vgg
from geolib.networks.channel_graph import ChannelGroup as ChannelGroup
from geolib.networks.channel_groups import (
    channel_groups as channel_groups,
    permute_channels as permute_channels,
)
from geolib.networks.erf_kernel import ErfKernel as ErfKernel
from geolib.networks.sequential import (
    Stage as Stage,
    channel_vectors as channel_vectors,
    named_layers as named_layers,
    read_stages as read_stages,
    weight_blocks as weight_blocks,
)
from geolib.networks.splits import (
    Table as Table,
    Task as Task,
    split_tasks as split_tasks,
    table as table,
)
from geolib.networks.training import (
    Meter as Meter,
    accuracy as accuracy,
    minimize as minimize,
    train as train,
    train_module as train_module,
)
from geolib.networks.weight_matching import (
    Alignment as Alignment,
    align as align,
)

__all__ = _guarded(globals())
