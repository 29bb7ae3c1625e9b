"""Writing files completely or not at all, and versions. It imports no other room."""
