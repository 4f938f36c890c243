"""What ``llama_index.llms.rsd`` holds: in wheels this file is there."""

from rsd_integrations.llama_index import RSDLLM

__all__ = ["RSDLLM"]
