"""Files: written whole or not at all, checksummed, read strictly."""
