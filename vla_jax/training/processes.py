"""The processes of one training run: one alone, or several that were started together on one or more hosts.

Every process runs the same program over its own local devices; together they form one mesh. Process 0 writes what
is not an array: configuration, metrics, progress. All of them see the same RUN directory.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from vla_jax.dataset.batches import ProcessShare
from vla_jax.errors import UserError


def join_processes(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects this process with the others of its run; call it before anything asks for devices.

    coordinator: HOST:PORT of process 0. Without arguments they come from the environment: SLURM, Open MPI, or
        JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        UserError: the environment does not say, or the others cannot be reached.
    """
    # Lets CPU devices of several processes work together; accelerators bring their own collectives.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except ValueError as error:
        raise UserError(
            f"--distributed: cannot tell the processes of this run ({error}); give --coordinator HOST:PORT, "
            "--num-processes and --process-id, or start it under SLURM"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"--distributed: the other processes cannot be reached: {str(error).splitlines()[0]}"
        ) from error


def is_main_process() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def process_share() -> ProcessShare:
    """Returns which rows of each batch this process makes."""
    return ProcessShare(jax.process_index(), jax.process_count())


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process; all of them have to ask, and wait for each other."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
