"""The phantom's layers."""

import pytest

from experiments.phantom.tissue import TARGET, TissueLayers


def test_media_follow_one_another_downwards():
    layers = TissueLayers(membrane_mm=2.0, target_mm=6.0, target_thickness_mm=1.5)
    tops = [top for top, _ in layers.scatterers()]
    assert tops == [0.0, 6.0, 7.5]
    assert layers.scatterers()[1][1] is TARGET
    assert [depth for depth, _ in layers.reflections()] == tops


@pytest.mark.parametrize(("membrane", "target"), [(3.0, 3.0), (4.0, 3.0), (0.0, 3.0)])
def test_refuses_a_membrane_that_is_not_above_the_target(membrane, target):
    with pytest.raises(ValueError, match="membrane"):
        TissueLayers(membrane_mm=membrane, target_mm=target)


def test_refuses_a_target_without_thickness():
    with pytest.raises(ValueError, match="thickness"):
        TissueLayers(membrane_mm=1.0, target_mm=3.0, target_thickness_mm=0.0)
