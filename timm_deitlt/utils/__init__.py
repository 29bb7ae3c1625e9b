"""Files that are whole or not there, and versions. Imports nothing of ours."""
