"""Writes packed data sets in the formats of others: LeRobot's."""
