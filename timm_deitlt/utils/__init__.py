"""Files that are written completely or not at all, words, tables, precision and versions. It imports no other room."""
