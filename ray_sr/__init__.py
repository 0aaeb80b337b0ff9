"""ray-sr: trains and serves image super-resolution and deblurring GANs on Ray."""

__version__ = "0.1.0"
