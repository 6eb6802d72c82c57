"""The Dagster project around `moge_core`: datasets, quality, training and finetuning, with their lineage."""
