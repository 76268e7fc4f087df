"""How good a detector is: AP, recall, localization accuracy and FROC, with intervals. NumPy in, JSON out."""
