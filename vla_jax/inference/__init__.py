"""Running a trained policy: from a checkpoint directory to action chunks in mm and degrees."""
