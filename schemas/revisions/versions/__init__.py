"""One file for each revision, and the DDL it ran when it was new: a revision never changes."""
