"""What a cluster tells a process, and what is told to a cluster."""
