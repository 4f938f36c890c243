"""What ``llama_index.llms.rsd`` is: in wheels this folder is there, and not here."""

from rsd_integrations.llama_index import RSDLLM

__all__ = ["RSDLLM"]
