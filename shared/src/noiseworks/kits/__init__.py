"""Machinery of a family of hosts that at least two methods use; import the kit you need."""
