"""Held-out scores of what was trained."""
