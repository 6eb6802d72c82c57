"""The assets of the project, one folder a domain."""
