"""Files of ours and of other people: read and checked, written whole; nothing in them is run."""
