"""The five properties of retrieval heads (Wu et al. 2024), the reasoning claim and a negative control, measured on the lab models."""

from headwise_lab.properties.run import measure_properties
from headwise_lab.properties.settings import Settings

__all__ = ["Settings", "measure_properties"]
