"""Images and features on disk, and code shared by all commands: flags, user errors, progress."""
