"""The package ``llama_index.llms.rsd``: in wheels this folder lies there instead of here."""

from rsd_integrations.llama_index import RSDLLM

__all__ = ["RSDLLM"]
