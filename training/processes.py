"""The processes of a run, one a GPU: torchrun and `accelerate launch` start them and number them."""

import os
from typing import Any

import torch
from accelerate.utils import gather_object

from demur.training.errors import TrainingError
from demur.training.recipe import Recipe


def count() -> int:
    """How many were started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """Which one this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the one that writes files and says what happened."""
    return number() == 0


def check(recipe: Recipe) -> None:
    """Raises TrainingError where a step would not have the recipe's rows, and says how to start the run."""
    wanted, found = recipe.processes, count()
    if found != wanted:
        raise TrainingError(
            f"the recipe shares its steps among {wanted} processes and {found} were started: start {wanted}, with "
            f"`torchrun --nproc-per-node {wanted}` or `accelerate launch --num_processes {wanted}` before the program, "
            f"or set processes={found}"
        )
    gpus = torch.cuda.device_count()
    if found == 1 and gpus > 1:
        # transformers would give every one of them a micro-batch.
        raise TrainingError(
            f"the recipe has one process, which uses one GPU, and {gpus} are visible: set CUDA_VISIBLE_DEVICES to one, "
            f"or start several processes and set processes={gpus}"
        )


def device() -> torch.device:
    """Where this one's weights go."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def wait() -> None:
    """Returns when every process of a started run has called it."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def gathered(values: list[Any]) -> list[Any]:
    """The values of all processes, in the order of their numbers; every process must ask. Tensors lie on the CPU."""
    found: list[Any] = gather_object(values)
    return found


def alone() -> dict[str, str]:
    """The environment for a program that is started by one process and knows nothing of the others."""
    ours = ("RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
