"""What assets use: launchers of processes, tracking of runs."""
