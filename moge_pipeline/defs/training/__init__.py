"""Trainings and what surrounds a launched one."""
