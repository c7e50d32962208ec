"""Data: where the examples come from, and the endless stream of training batches."""

from diffusion_ebm.data.load import first as first
from diffusion_ebm.data.load import load_some as load_some
from diffusion_ebm.data.load import load_source as load_source
from diffusion_ebm.data.load import random_choice as random_choice
from diffusion_ebm.data.pipeline import train_batches as train_batches
