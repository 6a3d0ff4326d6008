"""Live pictures to actions: `python examples/live_pictures.py RUN BACKBONE PROMPT VIEW=PICTURE…`.

RUN: trained policy. BACKBONE: what its features were exported with; needs the extra `export`. PICTURE: in place of the
newest picture of a camera, a file; an array (height, width, 3) of uint8 will do as well.
"""

import argparse
from pathlib import Path

import numpy as np

from feature_cache.encoder import FeatureEncoder
from vla_jax import InsertionPolicy

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("run", type=Path)
parser.add_argument("backbone")
parser.add_argument("prompt")
parser.add_argument("pictures", nargs="*", metavar="VIEW=PICTURE")
arguments = parser.parse_args()

policy = InsertionPolicy.from_checkpoint(arguments.run)
policy.warm_up()
encoder = FeatureEncoder.open(arguments.backbone, policy.features, policy.data.views or ())

# From here on once for each decision; a view without a picture is masked.
files = dict(picture.split("=", 1) for picture in arguments.pictures)
vl, vl_mask = encoder.encode(
    arguments.prompt, {view: Path(file).read_bytes() for view, file in files.items()}
)
# The newest sensor rows as recorded, (1, rows, channels), oldest first; None where there is no sensor.
sensor, has_sensor = None, np.array([False])
(chunk,) = policy.predict(vl[None], vl_mask[None], sensor, has_sensor)

print(
    "  ".join(
        f"{name} [{unit}]" if unit else name
        for name, unit in zip(policy.data.actions.names, policy.data.actions.units, strict=True)
    )
)
for action in chunk:
    print("  ".join(f"{value:.4f}" for value in action))
