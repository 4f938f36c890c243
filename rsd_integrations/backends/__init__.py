"""The engine room: protocols carried out by real models."""
