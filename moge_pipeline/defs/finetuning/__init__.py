"""Finetunings, their bases and schedules."""
