"""On the robot: live streams in, limited actions out, at the control rate."""
