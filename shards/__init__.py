"""Images and features on disk, and what every command shares: flags, user errors, progress."""
