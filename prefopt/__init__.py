"""Tune language models on preferences."""
