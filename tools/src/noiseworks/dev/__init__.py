"""For developers of the workspace; nothing here is needed to use a method."""
