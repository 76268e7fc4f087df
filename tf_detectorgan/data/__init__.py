"""From files to tensors. This room never sees a network."""
