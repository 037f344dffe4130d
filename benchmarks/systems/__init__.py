"""The systems that are compared: a file each, behind the interface in `base`."""
