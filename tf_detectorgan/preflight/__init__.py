"""Trains in short before a long run: checks that every phase ends, measures time, memory and disk."""
