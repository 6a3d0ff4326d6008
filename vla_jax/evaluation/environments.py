"""Several environments stepped together: in this process, or spread over processes of their own."""

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from vla_jax.contracts.environment import Environment, Outcome, Reading
from vla_jax.contracts.specs import ActionSpec
from vla_jax.errors import UserError
from vla_jax.storage.worker_processes import begin_worker


class Environments(Protocol):
    """Environments alike, told apart by their numbers from 0."""

    count: int
    actions: ActionSpec

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Reading]:
        """Starts an episode in each environment that is named."""

    def step(self, actions: Mapping[int, Float[np.ndarray, " a"]]) -> dict[int, tuple[Reading, bool]]:
        """Executes an action in each environment that is named; returns what is known then, and whether the episode
        has ended by itself."""

    def outcome(self, number: int) -> Outcome:
        """Judges an episode up to now."""


class LocalEnvironments:
    """Environments of this process, one after the other."""

    def __init__(self, environments: Sequence[Environment]) -> None:
        self._environments = list(environments)
        self.count = len(self._environments)
        self.actions = self._environments[0].actions

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Reading]:
        """See `Environments`."""
        return {number: self._environments[number].reset(seed) for number, seed in seeds.items()}

    def step(self, actions: Mapping[int, Float[np.ndarray, " a"]]) -> dict[int, tuple[Reading, bool]]:
        """See `Environments`."""
        return {
            number: (self._environments[number].step(action), self._environments[number].is_over())
            for number, action in actions.items()
        }

    def outcome(self, number: int) -> Outcome:
        """See `Environments`."""
        return self._environments[number].outcome()


class EnvironmentProcesses:
    """Environments in processes of their own. Open it with `environment_processes`."""

    def __init__(self, connections: Sequence[Connection], count: int, actions: ActionSpec) -> None:
        self._connections = list(connections)
        self.count = count
        self.actions = actions

    def reset(self, seeds: Mapping[int, int]) -> dict[int, Reading]:
        """See `Environments`."""
        return self._ask("reset", seeds)

    def step(self, actions: Mapping[int, Float[np.ndarray, " a"]]) -> dict[int, tuple[Reading, bool]]:
        """See `Environments`."""
        return self._ask("step", actions)

    def outcome(self, number: int) -> Outcome:
        """See `Environments`."""
        return self._ask("outcome", {number: None})[number]

    def _ask(self, what: str, of: Mapping[int, Any]) -> dict[int, Any]:
        """Asks all processes, then waits for all: they work at the same time."""
        shares: list[dict[int, Any]] = [{} for _ in self._connections]
        for number, value in of.items():
            shares[number % len(shares)][number] = value
        asked = [connection for connection, share in zip(self._connections, shares, strict=True) if share]
        answers: dict[int, Any] = {}
        try:
            for connection, share in zip(self._connections, shares, strict=True):
                if share:
                    connection.send((what, share))
            for connection in asked:
                answer = connection.recv()
                if isinstance(answer, str):
                    raise RuntimeError(f"an environment failed:\n{answer}")
                answers |= answer
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise UserError(
                "a process with environments was killed, perhaps for want of memory; run the same command again with "
                "fewer of them"
            ) from error
        return answers


@contextmanager
def environment_processes(
    make: Callable[[], Environment], count: int, num_workers: int
) -> Iterator[EnvironmentProcesses]:
    """Opens `count` environments in `num_workers` processes, and ends them with its block.

    make: builds one; it is sent to the processes, so that it must pickle.
    """
    num_workers = min(num_workers, count)
    # Fresh processes: a fork would copy the threads' locks of whatever library is loaded here.
    context = multiprocessing.get_context("spawn")
    connections, processes = [], []
    try:
        for index in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, make, range(index, count, num_workers)), daemon=True
            )
            process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
        (actions, *_) = [connection.recv() for connection in connections]
        yield EnvironmentProcesses(connections, count, actions)
    except EOFError as error:
        raise UserError("a process with environments could not begin; its own message says why") from error
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            # It ends by itself when its connection does.
            process.join(timeout=5)
            process.kill()


def _serve(connection: Connection, make: Callable[[], Environment], numbers: range) -> None:
    """A process: answers until the other end is closed."""
    begin_worker()
    environments = {number: make() for number in numbers}
    connection.send(environments[numbers[0]].actions)
    while True:
        try:
            what, share = connection.recv()
        except EOFError:
            return
        try:
            answer = {number: _answer(environments[number], what, value) for number, value in share.items()}
        except Exception:
            # The caller raises it; a pickled exception would lose where it happened.
            connection.send(traceback.format_exc())
            return
        connection.send(answer)


def _answer(environment: Environment, what: str, value: Any) -> Any:
    match what:
        case "reset":
            return environment.reset(value)
        case "step":
            return environment.step(value), environment.is_over()
        case _:
            return environment.outcome()
