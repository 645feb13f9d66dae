"""What we are measured against: the bare tools, written the way their own documentation shows."""
