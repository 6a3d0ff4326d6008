"""Axial force on a needle that enters layered tissue.

Model: Okamura, Simone, O'Leary, "Force modeling for needle insertion into soft tissue", IEEE Trans. Biomed. Eng.
51(10), 2004: the force is the sum of capsule stiffness (a nonlinear spring, until the puncture), a cutting force that
is constant in each tissue, and friction along the inserted shaft (a modified Karnopp model: Coulomb and viscous terms
per unit length, stick near zero velocity). The form is theirs; the coefficients are set for a thin needle in gel so
that the trace has the size of recorded insertions (a puncture of about 0.4 N, 0.2 to 0.3 N afterwards), not taken from
liver.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.phantom.tissue import TissueLayers


@dataclass(frozen=True)
class NeedleForceParameters:
    """Coefficients of the force model; forces in N, lengths in mm, times in s."""

    puncture_n: float = 0.4
    """Capsule force at which the membrane gives way."""
    stiffness_n_per_mm: float = 0.25
    stiffness_n_per_mm2: float = 0.60
    """Capsule force of a deflection d: stiffness_n_per_mm d + stiffness_n_per_mm2 d^2."""
    cutting_gel_n: float = 0.03
    cutting_target_n: float = 0.14
    bevel_mm: float = 0.4
    """Length of the tip's bevel: a layer's cutting force grows to its full value over it."""
    coulomb_n_per_mm: float = 0.012
    viscous_n_s_per_mm2: float = 0.004
    stick_mm_per_s: float = 0.12
    """Below this speed the shaft sticks and friction keeps its last value."""


@dataclass(frozen=True)
class NeedleForceState:
    """What the tissue remembers: a puncture, and the friction (N per inserted mm) of the last slip."""

    is_punctured: bool = False
    friction_n_per_mm: float = 0.0


def capsule_force(parameters: NeedleForceParameters, deflection_mm: NDArray) -> NDArray:
    """Returns the membrane's force [N] for its deflection [mm]; zero without contact."""
    deflection = np.maximum(deflection_mm, 0.0)
    return parameters.stiffness_n_per_mm * deflection + parameters.stiffness_n_per_mm2 * deflection**2


def cutting_force(parameters: NeedleForceParameters, layers: TissueLayers, depth_mm: NDArray) -> NDArray:
    """Returns the force [N] at the cutting edge for tip depths [mm]; it grows over the bevel in each layer."""

    def engaged(top_mm: float) -> NDArray:
        return np.clip((depth_mm - top_mm) / parameters.bevel_mm, 0.0, 1.0)

    extra = parameters.cutting_target_n - parameters.cutting_gel_n
    return parameters.cutting_gel_n * engaged(0.0) + extra * engaged(layers.target_mm)


def friction_per_mm(parameters: NeedleForceParameters, velocity_mm_s: float, last_n_per_mm: float) -> float:
    """Returns the friction per inserted length [N/mm] at an insertion velocity (positive inwards).

    Modified Karnopp model (Okamura et al. 2004): Coulomb plus viscous when slipping, the last value when stuck.
    """
    if abs(velocity_mm_s) < parameters.stick_mm_per_s:
        return float(np.clip(last_n_per_mm, -parameters.coulomb_n_per_mm, parameters.coulomb_n_per_mm))
    coulomb = parameters.coulomb_n_per_mm * np.sign(velocity_mm_s)
    return float(coulomb + parameters.viscous_n_s_per_mm2 * velocity_mm_s)


def needle_force(
    parameters: NeedleForceParameters,
    layers: TissueLayers,
    state: NeedleForceState,
    depth_mm: NDArray,
    velocity_mm_s: float,
) -> tuple[NDArray, NDArray, NeedleForceState]:
    """Returns the axial force along a stretch of motion, the membrane's depth, and the state after it.

    depth_mm: [t], tip depth below the surface at successive samples. velocity_mm_s: of the stretch, positive inwards.
    Returns force [t] in N, positive when the tissue pushes back; the membrane's depth [t] in mm (the tip carries it
    along until the puncture, then it springs back); the new state.
    """
    deflection = np.where(state.is_punctured, 0.0, np.maximum(depth_mm - layers.membrane_mm, 0.0))
    capsule = capsule_force(parameters, deflection)
    # Once a sample reaches the puncture force, it and all later ones are free of the capsule.
    is_free = np.maximum.accumulate(capsule >= parameters.puncture_n)
    capsule = np.where(is_free, 0.0, capsule)
    friction = friction_per_mm(parameters, velocity_mm_s, state.friction_n_per_mm)
    force = capsule + cutting_force(parameters, layers, depth_mm) + friction * np.maximum(depth_mm, 0.0)
    membrane_mm = layers.membrane_mm + np.where(is_free, 0.0, deflection)
    is_punctured = state.is_punctured or bool(is_free[-1])
    return force, membrane_mm, NeedleForceState(is_punctured, friction)
