"""Make ZeRO-3 parameters of shares. DeepSpeed itself moves the whole model to each device and partitions it there."""

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.comm import init_distributed
from deepspeed.runtime.zero.partition_parameters import Init
from torch import nn

from orchestrator.json_values import JsonObject
from orchestrator.train.engine.process_memory import return_free_memory
from orchestrator.train.models.shares import Keep, take_share


@torch.no_grad()
def partition_shares(model: nn.Module, config: JsonObject, rank: int, world_size: int) -> None:
    """Partition a model whose parameters have shares (`shares.give_shares`); its buffers move to the device.

    `config` is what the engine gets. Sends nothing, but needs the process group. DeepSpeed's own code makes the
    partitions, numbers the parameters and places the partitions. It copies this rank's part out of a parameter, and
    only that part of it has memory here: an allocation takes memory page by page, when it is written.
    """
    # As deepspeed.initialize does; the config below is checked against the number of ranks.
    init_distributed(dist_backend=get_accelerator().communication_backend_name(), verbose=False)
    # A module without parameters: it also makes DeepSpeed replace F.linear, as it does for a model that it partitions.
    init = Init(module=nn.Module(), config_dict_or_path=config)
    keep = Keep(rank, world_size)
    for parameter in model.parameters():
        part = keep.part(parameter.numel())
        whole = torch.empty(parameter.shape, dtype=init.dtype)
        whole.view(-1)[part.start : part.end] = take_share(parameter)
        parameter.data = whole
        del whole
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]
        # Gathered values go to the device of this tensor.
        parameter.data = torch.empty(0, dtype=init.dtype, device=init.local_device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(init.local_device)
    return_free_memory()
