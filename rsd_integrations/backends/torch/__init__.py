"""The in-process engine room on torch and transformers: slot caches, sampling, scoring, loading."""
