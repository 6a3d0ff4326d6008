"""A simulated phantom: a needle inserted into layered tissue under cameras, with a force and an OCT A-scan sensor.

`PhantomSimulator` is the world, `PhantomEnvironment` the same with an end and a judgement, for policies;
`python -m experiments.phantom OUT` writes episodes of a scripted demonstrator.
"""

from experiments.phantom.demonstrator import demonstrator_action
from experiments.phantom.environment import PhantomEnvironment
from experiments.phantom.scenario import Scenario
from experiments.phantom.simulator import PhantomSimulator

__all__ = ["PhantomEnvironment", "PhantomSimulator", "Scenario", "demonstrator_action"]
