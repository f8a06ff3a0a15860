"""The paper: regions, mapper, attention, losses, and the editor that wires them."""
