"""On the robot: live streams in, commands out, and what was received written as episodes."""
