"""DetectorGAN: generative modelling for small-data object detection (Liu et al., ICCV 2019)."""

__version__ = "0.1.0"
