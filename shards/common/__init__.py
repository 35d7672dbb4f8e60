"""What every command shares: flags, errors, ranks, processes, files, locks, random numbers."""
