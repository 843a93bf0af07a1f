"""One bundle onto several targets, in waves, and the record of what came of it."""
