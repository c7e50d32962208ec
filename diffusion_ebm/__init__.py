"""Energy-based models by diffusion recovery likelihood (Gao et al., ICLR 2021), in JAX and Flax."""
