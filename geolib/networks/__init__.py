"""What is known of modules, for all chapters: structure, symmetries, training."""

from geolib.doors import guarded as _guarded

from .batch_norm import recalibrate as recalibrate
from .batch_norm import with_batch_statistics as with_batch_statistics
from .build import lenet as lenet, mlp as mlp
from .channel_graph import ChannelGroup as ChannelGroup
from .channel_groups import channel_groups as channel_groups
from .channel_groups import permute_channels as permute_channels
from .erf_kernel import ErfKernel as ErfKernel
from .splits import Table as Table, Task as Task, split_tasks as split_tasks
from .splits import table as table
from .training import DeviceMemoryError as DeviceMemoryError, Meter as Meter
from .training import accuracy as accuracy, fitting_batch as fitting_batch
from .training import minimize as minimize, train as train
from .training import train_module as train_module
from .weight_matching import Alignment as Alignment, align as align

__all__ = _guarded(globals())
