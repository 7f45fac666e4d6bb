"""Training in several processes, one per GPU or on the CPU, as `torchrun` starts them, joined by accelerate.

Started alone, a process is a group of one.
"""

import atexit
import gc
from datetime import timedelta
from functools import cache

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState


@cache
def join(device: torch.device) -> PartialState:
    """Return the rank of this process among those that train together on this kind of device."""
    # the others wait while the main one encodes hours of sessions
    place = PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))
    atexit.register(_leave, place)
    return place


def _leave(place: PartialState) -> None:
    """End the threads of the group, which would abort the interpreter; models in cycles still hold it."""
    gc.collect()
    place.destroy_process_group()


def accelerator(device: torch.device, unused: bool) -> Accelerator:
    """Return the accelerator that splits the work of one fit among the processes.

    Precision stays with torch.autocast: Accelerator allows one per process, but every fit has its own.

    Args:
        device: of the model.
        unused: a batch may leave parameters without gradient.
    """
    join(device)
    sharing = DistributedDataParallelKwargs(find_unused_parameters=unused)
    return Accelerator(mixed_precision="no", device_placement=False, kwargs_handlers=[sharing])
