"""A second device on the CPU's memory, for what no CPU shows: tensors that lie on the wrong device."""
