"""A simulated phantom: a needle inserted into layered tissue under cameras, with a force and an OCT A-scan sensor.

`PhantomSimulator` is the closed loop; `python -m experiments.phantom OUT` writes episodes of a scripted expert in it.
"""

from experiments.phantom.expert import expert_action
from experiments.phantom.scenario import Scenario
from experiments.phantom.simulator import Observation, PhantomSimulator

__all__ = ["Observation", "PhantomSimulator", "Scenario", "expert_action"]
