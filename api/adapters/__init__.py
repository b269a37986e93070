"""The store in other people's frameworks, one file each; each needs its own extra."""
