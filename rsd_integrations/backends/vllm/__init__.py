"""Draft, target and PRM behind vLLM servers."""
