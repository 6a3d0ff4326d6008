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

# From here on once for each decision. A view without a picture is masked.
files = dict(picture.split("=", 1) for picture in arguments.pictures)
pictures = {view: Path(file).read_bytes() for view, file in files.items()}
vl, vl_mask = encoder.encode(arguments.prompt, pictures)
# The newest sensor rows as recorded, oldest first, as (1, rows, channels); here there is no sensor.
(chunk,) = policy.predict(vl[None], vl_mask[None], sensor=None, has_sensor=np.array([False]))
print(*policy.data.actions.names)
for action in chunk:
    print(*(f"{value:.4f}" for value in action))
