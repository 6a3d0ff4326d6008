"""The phantom's layers along the needle's path, and their optical and mechanical constants.

From top to bottom: air, gel, a thin membrane (the capsule that must be punctured), gel, the target layer, base gel.
Depths are mm below the visible surface, positive downwards; the air above has negative depths.
"""

from dataclasses import dataclass

GEL_INDEX = 1.36
"""Group refractive index of the gel near 1.3 um; the sensor's depth axis is calibrated for it."""


@dataclass(frozen=True)
class Scatterer:
    """A homogeneous scattering medium as OCT sees it (single scattering, Beer-Lambert).

    backscatter_db: mean power at the medium's top over the sensor's noise floor, dB.
    attenuation_per_mm: attenuation coefficient mu; the power falls by exp(-2 mu z) on the way in and out.
    """

    backscatter_db: float
    attenuation_per_mm: float


GEL = Scatterer(backscatter_db=17.0, attenuation_per_mm=0.2)
TARGET = Scatterer(backscatter_db=47.0, attenuation_per_mm=1.0)
BASE = Scatterer(backscatter_db=26.0, attenuation_per_mm=0.4)

SURFACE_REFLECTION_DB = 46.0
MEMBRANE_REFLECTION_DB = 44.0
TARGET_FRONT_REFLECTION_DB = 53.0
TARGET_BACK_REFLECTION_DB = 58.0
"""Peak power of the interfaces over the noise floor before attenuation, dB. The target's back face reflects most,
as the pigment epithelium does behind a retina; it is what shows how far the tip is inside the target layer."""


@dataclass(frozen=True)
class TissueLayers:
    """Depths of one phantom's layers, mm below the surface."""

    membrane_mm: float
    target_mm: float
    target_thickness_mm: float = 1.2

    def __post_init__(self):
        if not 0 < self.membrane_mm < self.target_mm:
            raise ValueError(
                f"the membrane ({self.membrane_mm} mm) must lie between the surface and the target layer "
                f"({self.target_mm} mm)"
            )
        if self.target_thickness_mm <= 0:
            raise ValueError(f"target_thickness_mm must be positive, not {self.target_thickness_mm}")

    @property
    def target_back_mm(self) -> float:
        """Depth of the target layer's lower face."""
        return self.target_mm + self.target_thickness_mm

    def scatterers(self) -> tuple[tuple[float, Scatterer], ...]:
        """Returns (depth of the top, medium) of every scattering layer from the surface down."""
        return ((0.0, GEL), (self.target_mm, TARGET), (self.target_back_mm, BASE))

    def reflections(self) -> tuple[tuple[float, float], ...]:
        """Returns (depth, peak dB) of the interfaces that stay where they are; the membrane gives way, so it is
        not among them."""
        return (
            (0.0, SURFACE_REFLECTION_DB),
            (self.target_mm, TARGET_FRONT_REFLECTION_DB),
            (self.target_back_mm, TARGET_BACK_REFLECTION_DB),
        )
