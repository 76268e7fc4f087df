"""Submits and controls Jobs on Kubernetes, and reads the environment of a process in a cluster."""
