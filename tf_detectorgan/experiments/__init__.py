"""Runs read back: numbers to a page."""
