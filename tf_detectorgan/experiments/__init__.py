"""Runs tables of arms and seeds, and writes reports from finished runs."""
