"""`python -m experiments.serve RUN`: answers requests for actions over the network, by openpi's protocol."""

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments import cli
from experiments.console import make_console
from vla_jax.errors import UserError
from vla_jax.optional_torch import require

if TYPE_CHECKING:
    from feature_cache.encoder import FeatureEncoder
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.serving.limits import Limits
    from vla_jax.serving.service import PolicyService

DESCRIPTION = """Serves a policy on a websocket: openpi's client and `vla_jax.client` send observations and get chunks
of actions. With --backbone it takes pictures and a prompt, and in any case features. Requests of several clients are
computed in batches.

`http://HOST:PORT/healthz` answers OK. Ctrl-C or SIGTERM ends it. Needs the extra `serve`."""

LARGEST_BATCH = 256


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Training output directory, or one checkpoint in it."""
    backbone: str | None = None
    """What the policy's features were exported with, to take pictures: a directory, or a model hub's name."""
    adapter: Path | None = None
    """Directory of the backbone's LoRA adapter, where the features were exported with one."""
    host: str = "127.0.0.1"
    """Address to listen at; others than this machine's own (127.0.0.1, ::1, localhost) need --api-key-file."""
    port: int = 8000
    """Port to listen at; 0 takes one that is free, and says which."""
    api_key_file: Path | None = None
    """File with the key that clients must send, on its only line."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Which checkpoint of a training output directory; best by its validation error."""
    sampler: str | None = None
    """How a diffusion policy denoises; the checkpoint's own by default."""
    steps: int | None = None
    """Denoising steps of a diffusion policy; the checkpoint's own by default."""
    guided: bool = False
    """Draw the denoising of a policy that was trained without a prefix to the prefix of a request (real-time
    chunking)."""
    max_batch: int = 8
    """Requests that are computed together, at most."""
    max_clients: int = 64
    """Connections at a time."""
    idle_timeout: float = 3600.0
    """Seconds after which a connection without a request is closed."""


def main(arguments: Arguments) -> None:
    """Loads and compiles the policy, says where it is served, and serves it until it is told to stop."""
    _check(arguments)
    require("serve", "websockets", "msgpack", extra="serve")
    from vla_jax.serving.access import bind, read_api_key
    from vla_jax.serving.limits import Limits
    from vla_jax.serving.server import PolicyServer
    from vla_jax.serving.service import PolicyService
    from vla_jax.storage.stop_signals import stop_requested

    key_file = arguments.api_key_file
    api_key = None if key_file is None else read_api_key(key_file)
    limits = Limits(max_clients=arguments.max_clients, idle_s=arguments.idle_timeout)
    with bind(arguments.host, arguments.port, api_key) as bound, stop_requested() as stop:
        policy = _policy(arguments)
        service = PolicyService(policy, _encoder(arguments, policy), max_batch=arguments.max_batch)
        service.warm_up()
        server = PolicyServer(service, api_key=api_key, limits=limits)
        try:
            asyncio.run(
                server.run(bound, lambda: stop.is_set, lambda: _announce(arguments, bound, service, limits))
            )
        except OSError as error:
            from vla_jax.serving.access import cannot_listen

            raise UserError(cannot_listen(arguments.host, arguments.port, error)) from error
        finally:
            service.close()
    make_console().print("stopped")


def _policy(arguments: Arguments) -> "InsertionPolicy":
    from vla_jax.policy.insertion_policy import InsertionPolicy

    return InsertionPolicy.from_checkpoint(
        arguments.run,
        checkpoint=arguments.checkpoint,
        sampler=arguments.sampler,
        steps=arguments.steps,
        guided=arguments.guided,
    )


def _encoder(arguments: Arguments, policy: "InsertionPolicy") -> "FeatureEncoder | None":
    """Returns what makes the policy's features of pictures; None without a backbone."""
    if arguments.backbone is None:
        return None
    require("--backbone", "torch", "transformers")
    from feature_cache.encoder import FeatureEncoder

    adapter = None if arguments.adapter is None else str(arguments.adapter)
    return FeatureEncoder.open(arguments.backbone, policy.features, policy.data.views or (), adapter=adapter)


def _announce(arguments: Arguments, bound: socket.socket, service: "PolicyService", limits: "Limits") -> None:
    """Prints what is served, and where; the address last, for whoever waits for it."""
    from vla_jax.serving.request_spec import units

    loaded, console = service.policy.loaded, make_console()
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    console.print(f"policy: {loaded.path}, step {loaded.metadata.step}", soft_wrap=True)
    console.print(
        f"actions: {service.policy.data.actions.horizon} of {units(service.policy.data.actions)}",
        soft_wrap=True,
    )
    console.print(
        f"requests: {' or '.join(service.spec.kinds)}, up to {service.batch_sizes[-1]} in a batch and "
        f"{limits.max_clients} clients"
    )
    console.print(f"serving at ws://{host}:{bound.getsockname()[1]}", soft_wrap=True)
    console.file.flush()


def _check(arguments: Arguments) -> None:
    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port must be from 0 to {2**16 - 1}, not {arguments.port}")
    if not 1 <= arguments.max_batch <= LARGEST_BATCH:
        raise UserError(f"--max-batch must be from 1 to {LARGEST_BATCH}, not {arguments.max_batch}")
    if arguments.max_clients < 1:
        raise UserError(f"--max-clients must be at least 1, not {arguments.max_clients}")
    if not 0 < arguments.idle_timeout < float("inf"):
        raise UserError(f"--idle-timeout must be above 0 seconds, not {arguments.idle_timeout:g}")
    if arguments.adapter is not None and arguments.backbone is None:
        raise UserError("--adapter goes with --backbone")


COMMAND = cli.Command("serve", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
