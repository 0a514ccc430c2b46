"""Following files: the two list formats on disk, and their last good contents."""
