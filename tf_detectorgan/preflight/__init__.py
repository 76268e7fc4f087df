"""Runs a few steps of every phase before a long run, and measures time, memory and disk."""
