"""What models write, read as text: steps and stops, thinking, calls of tools. Pure."""
