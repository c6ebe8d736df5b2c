"""Audio compression in the time-frequency domain with sparse CNNs, in JAX and Flax."""
