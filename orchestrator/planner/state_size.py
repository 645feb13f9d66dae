"""How large the training state is, as every part that keeps, sends or plans it counts it. Values only."""

STATE_BYTES_PER_PARAMETER = 12
"""An fp32 master and two fp32 moments."""
SLOTS = 2
"""States that a cell in a vault holds: one stays whole while the other is written."""
